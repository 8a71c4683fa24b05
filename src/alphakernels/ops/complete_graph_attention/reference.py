"""Attention over the complete graph of a day's stocks (Velickovic et al. 2018, arXiv:1710.10903, with Qlib's scores) in plain PyTorch:
direct, all pairs formed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .._days import day_slices


def attention(s: Tensor, t: Tensor, negative_slope: float) -> Tensor:
    """P [I, J] of s [I], t [J]: row i is softmax_j(leaky_relu(s_i + t_j))."""
    return torch.softmax(F.leaky_relu(s[:, None] + t[None, :], negative_slope), dim=1)


def complete_graph_attention(
    s: Tensor, t: Tensor, h: Tensor, offsets: Tensor | None, negative_slope: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out [N, H], and nothing of what the kernels keep for their backward pass."""
    out = [attention(s[day], t[day], negative_slope) @ h[day] for day in day_slices(offsets, len(h))]
    nothing = h.new_empty(0)
    return torch.cat([h[:0], *out]), nothing, nothing, nothing
