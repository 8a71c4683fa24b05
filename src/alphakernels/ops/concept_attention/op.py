"""concept_attention: stocks attend to concepts by cosine similarity, tile by tile; nothing of size stocks x concepts is stored."""

from __future__ import annotations

from torch import Tensor

from .. import _backend, _checks, _days
from .._library import Formula, define
from ..ghost_batch_norm.op import statistics_dtype
from . import reference

_TRITON = "alphakernels.ops.concept_attention.triton"


def _setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx, ops, grad: Tensor | None, *_):
    if grad is None:
        return (None,) * 4
    dx, dconcepts = ops.concept_attention_backward(grad, *ctx.saved_tensors)
    return dx, dconcepts, None, None


CONCEPT_ATTENTION = define(
    "concept_attention",
    "(Tensor x, Tensor concepts, Tensor? offsets, Tensor? concept_offsets) -> (Tensor, Tensor)",
    fake=lambda x, *_: (x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=statistics_dtype(x))),
    formula=Formula(_setup, _backward),
    triton=_TRITON,
)
define(
    "concept_attention_backward",
    "(Tensor grad, Tensor x, Tensor concepts, Tensor? offsets, Tensor? concept_offsets, Tensor out, Tensor total) -> (Tensor, Tensor)",
    fake=lambda grad, x, concepts, *_: (x.new_empty(x.shape), concepts.new_empty(concepts.shape)),
    triton=_TRITON,
)


def concept_attention(x: Tensor, concepts: Tensor, offsets: Tensor | None = None, concept_offsets: Tensor | None = None) -> Tensor:
    """`softmax(cos(x, concepts), dim=1) @ concepts`: what each stock takes from the concepts it resembles.

    cos(a, b) = a.b / (|a| |b| + 1e-6). A concept whose row sums to zero takes no part (in HIST: no stock of the day belongs to it);
    where none takes part, the result is zero.

    Args:
        x: [N, H] floating point, stocks.
        concepts: [M, H].
        offsets: int64 [days + 1] rising from 0 to N, on x's device or the CPU: day d is the rows [offsets[d], offsets[d + 1]) of x.
            None: one day.
        concept_offsets: the same for the rows of concepts, of as many days.

    Returns:
        [N, H] in x's dtype. The gradient of the norm of a row of zeros is zero.

    Raises:
        TypeError, ValueError: x that is not a floating-point [N, H]; concepts that are not [M, H] of x's dtype and device; offsets
            that are not int64, do not rise from 0 to the number of rows, or are of another number of days than concept_offsets.

    Source: Xu et al., "HIST: A Graph-based Framework for Stock Trend Forecasting via Mining Concept-Oriented Shared Information",
    2021, arXiv:2110.13716; Qlib's HISTModel.
    """
    op = "concept_attention"
    _checks.require_float(op, "x", x)
    _checks.require_rank(op, "x", x, 2, "[N, H]")
    _checks.require_float(op, "concepts", concepts)
    _checks.require_rank(op, "concepts", concepts, 2, "[M, H]")
    x, concepts = _checks.autocast(x, concepts)
    _checks.require_like(op, "concepts", concepts, x, (concepts.shape[0], x.shape[1]))
    _days.check_offsets(op, offsets, x.shape[0])
    _days.check_offsets(op, concept_offsets, concepts.shape[0], "concept_offsets")
    days = [1 if o is None else o.shape[0] - 1 for o in (offsets, concept_offsets)]
    _checks.require(days[0] == days[1], op, "concept_offsets", f"of {days[0]} days, as offsets are", f"{days[1]} days")
    offsets, concept_offsets = (_days.on_device(o, x.device) for o in (offsets, concept_offsets))
    return _backend.run(CONCEPT_ATTENTION, reference.concept_attention, x, x, concepts, offsets, concept_offsets)[0]
