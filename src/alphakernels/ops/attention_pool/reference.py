"""ALSTM's attention over time (Qin et al. 2017, arXiv:1704.02971, in the form of Qlib's ALSTMModel) in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _random


def attention_pool(h: Tensor, weight: Tensor, bias: Tensor | None, score: Tensor, seed: Tensor | None, dropout: float) -> tuple[Tensor, Tensor]:
    """(out [B, 2H], weights [B, T]) from h [B, T, H]."""
    batch, steps, _ = h.shape
    u = torch.nn.functional.linear(h, weight, bias)  # [B, T, A]
    if seed is not None:
        u = u * _random.dropout_factors(seed, 0, (batch * steps, u.shape[2]), dropout, u).view_as(u)
    weights = torch.softmax(torch.tanh(u) @ score, 1)  # [B, T]
    pooled = (weights[:, :, None] * h).sum(1)  # [B, H]
    return torch.cat([h[:, -1], pooled], 1), weights
