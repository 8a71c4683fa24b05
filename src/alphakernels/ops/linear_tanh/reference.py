"""A linear layer and a tanh in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_tanh(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[B, T, N] from x [B, T, K], weight [N, K] and bias [N] or None."""
    return torch.tanh(F.linear(x, weight, bias))
