"""HIST's hidden concepts (Xu et al. 2021, arXiv:2110.13716, section 3.3, as Qlib computes them) in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from .._days import day_slices
from ..concept_attention.reference import cosine_similarity


def _day(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if len(x) == 0:
        return x, x.sum(1), x.sum(1).int()
    similarity = cosine_similarity(x, x)  # [N, N]
    # A stock is no neighbour of itself, but the zero on the diagonal competes: nobody is chosen for a negative similarity.
    others = similarity * (1 - torch.eye(len(x), dtype=x.dtype, device=x.device))
    value, choice = others.max(1)  # [N]
    links = torch.zeros_like(similarity).scatter(1, choice[:, None], value[:, None])  # [N, N], one a row
    links = links + torch.diag_embed((links.sum(0) != 0).to(x.dtype) * similarity.diagonal())
    spread = 0 * x.sum()  # what is not finite reaches every product with a zero of `links`
    return links.T @ x + spread, value, torch.where(value > 0, choice, -1).int()


def hidden_concepts(x: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(concepts [N, H], each stock's largest similarity [N], and to whom, as a place in its day [N])."""
    concepts, value, choice = zip(*(_day(x[day]) for day in (slice(0, 0), *day_slices(offsets, len(x)))), strict=True)
    return torch.cat(concepts), torch.cat(value), torch.cat(choice)
