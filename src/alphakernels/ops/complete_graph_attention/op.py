"""complete_graph_attention: exact softmax attention between all stocks of a day in O(N log N + N H).

leaky_relu is increasing and has two slopes, so the neighbours of i split in two by a threshold on t alone: P_i = {j : t_j > -s_i} with
weight exp(s_i + t_j), the others with weight exp(a (s_i + t_j)), a the negative slope. With t sorted once, t* its largest and
x_i = s_i + t*, k_i = |P_i|:

    m_i = x_i where k_i > 0, else a x_i               the row maximum
    c_i = exp(a x_i - m_i)                            at most one
    [num_i, Z_i] = [k_i > 0] sum over the k_i largest t of exp(t_j - t*) [h_j, 1] + c_i * the same sum of exp(a (t_j - t*)) over the rest

Nothing is subtracted and no exponent is positive. With mu+ and mu- the means of h over the two sides and p+ + p- = 1 their weights,
d out_i / d s_i = (1 - a) p+ p- (mu+ - mu-). The gradients of t and h are such sums again, over i sorted by s, of grad_i / Z_i.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _backend, _checks, _days
from .._library import Formula, define
from . import by_sorting, reference

_TRITON = "alphakernels.ops.complete_graph_attention.triton"


def _fake(s, t, h, offsets, negative_slope, keep):
    n, hidden = h.shape
    return (
        h.new_empty(n, hidden),
        h.new_empty(n if keep else 0, hidden),
        h.new_empty((2, n), dtype=torch.float64),
        h.new_empty((2, n), dtype=torch.int32),
    )


def _setup(ctx, inputs, output) -> None:
    s, t, h, offsets, ctx.negative_slope, ctx.keep = inputs
    ctx.save_for_backward(s, t, h, offsets, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx, ops, grad: Tensor | None, *_):
    s, t, h, offsets, out, slope, scale, order = ctx.saved_tensors
    if grad is None:
        return (None,) * 6
    if not ctx.keep:
        raise RuntimeError("complete_graph_attention: a call with keep=False kept nothing to differentiate it with")
    ds, dt, dh = ops.complete_graph_attention_backward(grad, s, t, h, offsets, ctx.negative_slope, out, slope, scale, order)
    return ds, dt, dh, None, None, None


COMPLETE_GRAPH_ATTENTION = define(
    "complete_graph_attention",
    "(Tensor s, Tensor t, Tensor h, Tensor? offsets, float negative_slope, bool keep) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=_fake,
    formula=Formula(_setup, _backward),
    triton=_TRITON,
)
define(
    "complete_graph_attention_backward",
    "(Tensor grad, Tensor s, Tensor t, Tensor h, Tensor? offsets, float negative_slope, Tensor out, Tensor slope, Tensor scale, "
    "Tensor order) -> (Tensor, Tensor, Tensor)",
    fake=lambda grad, s, t, h, *rest: (s.new_empty(s.shape), t.new_empty(t.shape), h.new_empty(h.shape)),
    triton=_TRITON,
)


def _checked(op: str, s: Tensor, t: Tensor, like: Tensor, negative_slope: float, offsets: Tensor | None) -> Tensor | None:
    """`offsets` on the device."""
    _checks.require_like(op, "s", s, like, (like.shape[0],))
    _checks.require_like(op, "t", t, like, (like.shape[0],))
    _checks.require(0 <= negative_slope <= 1, op, "negative_slope", "in [0, 1]", negative_slope)
    _days.check_offsets(op, offsets, like.shape[0])
    return _days.on_device(offsets, like.device)


def complete_graph_attention(s: Tensor, t: Tensor, h: Tensor, negative_slope: float = 0.01, offsets: Tensor | None = None) -> Tensor:
    """`softmax(leaky_relu(s[:, None] + t[None, :]), dim=1) @ h` within each day, without any matrix of N x N.

    Args:
        s: [N] floating point, the score of a stock that attends.
        t: [N], the score of a stock attended to.
        h: [N, H], what is averaged.
        negative_slope: of leaky_relu, in [0, 1].
        offsets: int64 [days + 1] rising from 0 to N, on h's device or the CPU: day d is the rows [offsets[d], offsets[d + 1]), and
            attention stays within a day. None: all rows are of one day.

    Returns:
        [N, H] in h's dtype. Where s_i + t_j is zero the slope is `negative_slope`, as in torch's leaky_relu.

    Raises:
        TypeError, ValueError: s, t that are not [N] of h's dtype and device; an h that is not a floating-point [N, H]; a slope outside
            [0, 1]; offsets that are not int64 or do not rise from 0 to N.

    Source: Velickovic et al., "Graph Attention Networks", 2018, arXiv:1710.10903; Qlib's GATModel.cal_attention.
    """
    op = "complete_graph_attention"
    _checks.require_float(op, "h", h)
    _checks.require_rank(op, "h", h, 2, "[N, H]")
    s, t, h = _checks.autocast(s, t, h)
    offsets = _checked(op, s, t, h, negative_slope, offsets)
    keep = torch.is_grad_enabled() and (s.requires_grad or t.requires_grad or h.requires_grad)
    arguments = (s, t, h, offsets, float(negative_slope), keep)
    native = by_sorting.complete_graph_attention
    return _backend.run(COMPLETE_GRAPH_ATTENTION, reference.complete_graph_attention, h, *arguments, native=native)[0]


def attention_rows(s: Tensor, t: Tensor, rows: Tensor, negative_slope: float = 0.01, offsets: Tensor | None = None) -> Tensor:
    """The attention of chosen stocks: row r is what stock rows[r] gives to every stock of its day, and zero to those of other days.

    Args:
        s, t, negative_slope, offsets: as in `complete_graph_attention`.
        rows: int64 [R], row numbers of stocks.

    Returns:
        [R, N], rows that sum to one.

    Raises:
        TypeError, ValueError: as `complete_graph_attention`; rows that are not int64 [R].
        IndexError: a row number outside [0, N), on the CPU.
    """
    op = "attention_rows"
    _checks.require_float(op, "t", t)
    _checks.require_rank(op, "t", t, 1, "[N]")
    offsets = _checked(op, s, t, t, negative_slope, offsets)
    if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.dim() != 1:
        raise TypeError(f"{op}: rows must be an int64 tensor [R], got {rows if not isinstance(rows, Tensor) else rows.dtype}")
    scores = torch.nn.functional.leaky_relu(s[rows][:, None] + t[None, :], negative_slope)  # [R, N]
    if offsets is not None:
        day = _days.day_of_rows(offsets, torch.arange(len(t), device=t.device))
        scores = scores.masked_fill(day[rows][:, None] != day[None, :], -torch.inf)
    return torch.softmax(scores, dim=1)
