"""HIST's predefined concepts (Xu et al. 2021, arXiv:2110.13716, section 3.2, as Qlib computes them) in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from .._days import day_slices


def _day(x: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
    size = member.sum(0)  # [K]
    return (member / (size * member + 1)).T @ x, size


def predefined_concepts(x: Tensor, membership: Tensor, offsets: Tensor | None, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """(concepts [days * K, H], their sizes [days, K])."""
    member = membership if rows is None else membership[rows]  # [N, K]
    days = [_day(x[day], member[day]) for day in day_slices(offsets, len(x))]
    concepts, sizes = zip((x[:0], member[0:0].sum(0)[:0]), *days, strict=True)
    return torch.cat(concepts), torch.cat(sizes).view(len(days), -1) if days else member[:0]
