"""TabNet's GLU block after its linear layer (Arik & Pfister 2019, arXiv:1908.07442, figure 4c) in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ghost_batch_norm import reference as _norm


def glu_block(
    u: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    linear_bias: Tensor | None,
    virtual_batch_size: int,
    training: bool,
    momentum: float,
    eps: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """out [B, H] from u [B, 2H], and the statistics that `ghost_batch_norm` returns."""
    if training or running_mean is not None:
        norm = (weight, bias, running_mean, running_var, linear_bias, virtual_batch_size, training, momentum, eps)
        v, *statistics = _norm.ghost_batch_norm(u, *norm)  # [B, 2H]
    else:
        v = u if linear_bias is None else u + linear_bias
        dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
        statistics = [u.new_empty(s, dtype=dtype) for s in ((0, u.shape[1]), (0, u.shape[1]), (0,), (0,))]
    value, gate = v.chunk(2, dim=1)  # [B, H] each
    out = value * torch.sigmoid(gate)
    if residual is not None:
        out = residual + out
    return out * scale, *statistics
