"""hidden_concepts: every stock joins its most similar other stock, found tile by tile; nothing of size stocks x stocks is stored."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _backend, _checks, _days
from .._library import Formula, define
from ..ghost_batch_norm.op import statistics_dtype
from . import reference

_TRITON = "alphakernels.ops.hidden_concepts.triton"


def _setup(ctx, inputs, output) -> None:
    x, offsets = inputs
    _, value, choice = output
    ctx.save_for_backward(x, offsets, value, choice)
    ctx.set_materialize_grads(False)


def _backward(ctx, ops, grad: Tensor | None, *_):
    return None if grad is None else ops.hidden_concepts_backward(grad, *ctx.saved_tensors), None


def _fake(x, offsets):
    n = x.shape[0]
    return x.new_empty(x.shape), x.new_empty(n, dtype=statistics_dtype(x)), x.new_empty(n, dtype=torch.int32)


HIDDEN_CONCEPTS = define(
    "hidden_concepts",
    "(Tensor x, Tensor? offsets) -> (Tensor, Tensor, Tensor)",
    fake=_fake,
    formula=Formula(_setup, _backward),
    triton=_TRITON,
)
define(
    "hidden_concepts_backward",
    "(Tensor grad, Tensor x, Tensor? offsets, Tensor value, Tensor choice) -> Tensor",
    fake=lambda grad, x, *_: x.new_empty(x.shape),
    triton=_TRITON,
)


def hidden_concepts(x: Tensor, offsets: Tensor | None = None) -> Tensor:
    """One concept a stock: the sum of the stocks to which it is the most similar, each times that similarity, and of itself.

    With cos(a, b) = a.b / (|a| |b| + 1e-6), stock i chooses c_i = argmax over the others of cos(x_i, x_j), where that is positive; then
    concept j is the sum over {i : c_i = j} of cos(x_i, x_j) x_i, plus cos(x_j, x_j) x_j if anyone chose j, and zero if nobody did.
    The choice has no gradient, the similarities have.

    Args:
        x: [N, H] floating point, stocks.
        offsets: int64 [days + 1] rising from 0 to N, on x's device or the CPU: day d is the rows [offsets[d], offsets[d + 1]).
            None: one day.

    Returns:
        [N, H] in x's dtype; `concept_attention` leaves out the rows of zeros. A day whose x is not finite throughout is NaN.

    Raises:
        TypeError, ValueError: x that is not a floating-point [N, H]; offsets that are not int64 or do not rise from 0 to N.

    Source: Xu et al. 2021, arXiv:2110.13716; Qlib's HISTModel, hidden concept module.
    """
    op = "hidden_concepts"
    _checks.require_float(op, "x", x)
    _checks.require_rank(op, "x", x, 2, "[N, H]")
    (x,) = _checks.autocast(x)
    _days.check_offsets(op, offsets, x.shape[0])
    return _backend.run(HIDDEN_CONCEPTS, reference.hidden_concepts, x, x, _days.on_device(offsets, x.device))[0]
