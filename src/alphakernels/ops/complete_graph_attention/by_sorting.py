"""The O(N log N) algorithm of op.py in PyTorch's own sorts and sums, for devices and dtypes without a compiled kernel: differentiable by
autograd, in float64 inside. Prefix sums run through all days; what is subtracted was summed with weights of at most one, and what remains
is divided by a sum of at least one, so that float64 loses nothing that counts."""

from __future__ import annotations

import torch
from torch import Tensor


def _by_day(score: Tensor, day: Tensor) -> Tensor:
    """Row numbers, day after day, each by falling score; equals in order."""
    order = torch.sort(score, descending=True, stable=True).indices
    return order[torch.sort(day[order], stable=True).indices]


def complete_graph_attention(
    s: Tensor, t: Tensor, h: Tensor, offsets: Tensor | None, negative_slope: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out [N, H], and nothing of what the kernels keep for their backward pass."""
    n, nothing = len(h), h.new_empty(0)
    if n == 0:
        return h * 1, nothing, nothing, nothing
    x, y, rows = s.double(), t.double(), h.double()
    if offsets is None:
        day, offsets = torch.zeros_like(s, dtype=torch.int64), torch.arange(0, n + 1, n, device=s.device)
    else:
        day = torch.searchsorted(offsets.contiguous(), torch.arange(n, device=s.device), right=True) - 1
    begin, end = offsets[:-1][day], offsets[1:][day]  # [N], of each stock's day
    order = _by_day(t.detach(), day)
    # Queries -s before equal t: what stands before a query is t_j > -s_i, of its day and of the days before.
    merged = _by_day(torch.cat([-s, t]).detach(), torch.cat([day, day]))
    k = torch.empty(2 * n, dtype=torch.int64, device=s.device).scatter(0, merged, (merged >= n).cumsum(0))[:n]
    largest = y.detach()[order][begin]  # t* of each stock's day
    top = x + largest
    positive = k > begin
    c = torch.exp(torch.where(positive, (negative_slope - 1) * top, 0))  # [N]
    # One column more for the sum of the weights.
    wide = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)[order]  # [N, H + 1]
    away = (y - largest)[order]
    zero = torch.zeros_like(wide[:1])
    steep = torch.cat([zero, (torch.exp(away)[:, None] * wide).cumsum(0)])
    flat = torch.cat([zero, (torch.exp(negative_slope * away)[:, None] * wide).cumsum(0)])
    first = torch.where(positive[:, None], steep[k] - steep[begin], 0)
    sums = first + c[:, None] * (flat[end] - flat[k])  # [N, H + 1]
    return (sums[:, :-1] / sums[:, -1:]).to(h.dtype), nothing, nothing, nothing
