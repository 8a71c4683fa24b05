"""HIST's attention of stocks over concepts by cosine similarity (Xu et al. 2021, arXiv:2110.13716) in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from .._days import day_slices

EPS = 1e-6  # beside the norms, Qlib's


def cosine_similarity(x: Tensor, y: Tensor) -> Tensor:
    """[N, M] of x [N, H], y [M, H]. The norm of a row of zeros has gradient zero, where Qlib's square root has NaN."""
    lengths = torch.linalg.vector_norm(x, dim=1)[:, None] * torch.linalg.vector_norm(y, dim=1)  # [N, M]
    return x @ y.T / (lengths + EPS)


def _day(x: Tensor, concepts: Tensor) -> tuple[Tensor, Tensor]:
    if len(concepts) == 0:  # an empty softmax, times nothing
        return 0 * x, x.new_zeros(len(x))
    silent = concepts.sum(1) == 0  # [M]
    concepts = concepts.masked_fill(silent[:, None], 0)  # masked, not dropped: no size depends on values; no gradient either
    weight = torch.exp(cosine_similarity(x, concepts)).masked_fill(silent, 0)  # [N, M]
    total = weight.sum(1)
    return weight @ concepts / torch.where(total == 0, 1, total)[:, None], total


def concept_attention(x: Tensor, concepts: Tensor, offsets: Tensor | None, concept_offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    """(out [N, H], the softmax's denominators [N])."""
    days = zip(day_slices(offsets, len(x)), day_slices(concept_offsets, len(concepts)), strict=True)
    out, total = zip((x[:0], x[:0].sum(1)), *(_day(x[rows], concepts[members]) for rows, members in days), strict=True)
    return torch.cat(out), torch.cat(total)
