"""TabNet's attentive mask (Arik & Pfister 2019, arXiv:1908.07442, section 3.2) in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sparsemax import reference as _sparsemax


def attentive_mask(logits: Tensor, prior: Tensor, relax: float, update_prior: bool, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mask [B, D], entropy of its rows [B], and the next prior ([B, D], or [0, D] when not asked for)."""
    mask = _sparsemax.sparsemax(logits * prior)  # [B, D]
    entropy = (-mask * torch.log(mask + eps)).sum(-1)  # [B]
    new_prior = prior * (relax - mask) if update_prior else mask.new_empty(0, mask.shape[1])
    return mask, entropy, new_prior
