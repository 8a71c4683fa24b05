"""Sparsemax (Martins & Astudillo 2016, arXiv:1602.02068, algorithm 1) in plain PyTorch: the oracle and the fallback."""

from __future__ import annotations

import torch
from torch import Tensor


def threshold(x: Tensor) -> Tensor:
    """tau of every row, [..., 1]: the number for which max(x - tau, 0) sums to one."""
    descending, _ = x.sort(dim=-1, descending=True)  # [..., D]
    excess = descending.cumsum(-1) - 1  # [..., D]: sum of the k largest, less 1
    k = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)  # [D]
    support = (k * descending > excess).sum(-1, keepdim=True).clamp(min=1)  # [..., 1]
    return excess.gather(-1, support - 1) / support.to(x.dtype)


def sparsemax(x: Tensor) -> Tensor:
    """Sparsemax over the last dimension; x is [..., D]."""
    if x.numel() == 0:
        return x.clone()
    x = x - x.amax(-1, keepdim=True).detach()  # all that matters lies in [-1, 0]
    tau = threshold(x.nan_to_num(nan=torch.nan, neginf=torch.finfo(x.dtype).min / (2 * x.shape[-1])))
    p = torch.relu(x - tau)  # not clamp: at a tie, where x == tau, the support ends and the gradient is zero
    return p * torch.ones_like(tau).masked_fill(x.isnan().any(-1, keepdim=True), torch.nan)  # a NaN row has a NaN gradient
