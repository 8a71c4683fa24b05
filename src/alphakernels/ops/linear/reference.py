"""A linear layer's product, of masked rows where there is a mask, in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, mask: Tensor | None) -> Tensor:
    """[B, N] from x [B, K], weight [N, K] and mask [B, K] or None."""
    return F.linear(x if mask is None else x * mask, weight)
