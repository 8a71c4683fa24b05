"""predefined_concepts: the sums over each concept's stocks, of all days at once; who belongs to nothing costs nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _backend, _checks, _days
from .._library import Formula, define
from ..ghost_batch_norm.op import statistics_dtype
from . import reference

_TRITON = "alphakernels.ops.predefined_concepts.triton"


def _setup(ctx, inputs, output) -> None:
    _, membership, offsets, rows = inputs
    ctx.save_for_backward(membership, offsets, rows, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, ops, grad: Tensor | None, *_):
    return None if grad is None else ops.predefined_concepts_backward(grad, *ctx.saved_tensors), None, None, None


def _fake(x, membership, offsets, rows):
    days, concepts = 1 if offsets is None else offsets.shape[0] - 1, membership.shape[1]
    return x.new_empty(days * concepts, x.shape[1]), x.new_empty(days, concepts, dtype=statistics_dtype(x))


PREDEFINED_CONCEPTS = define(
    "predefined_concepts",
    "(Tensor x, Tensor membership, Tensor? offsets, Tensor? rows) -> (Tensor, Tensor)",
    fake=_fake,
    formula=Formula(_setup, _backward),
    triton=_TRITON,
)
define(
    "predefined_concepts_backward",
    "(Tensor grad, Tensor membership, Tensor? offsets, Tensor? rows, Tensor size) -> Tensor",
    fake=lambda grad, membership, offsets, rows, size: grad.new_empty((membership if rows is None else rows).shape[0], grad.shape[1]),
    triton=_TRITON,
)


def _check_rows(op: str, rows: Tensor | None, n: int, stocks: int) -> None:
    """The values are read on the CPU alone: on a GPU reading them would wait for it."""
    if rows is None:
        return
    if not isinstance(rows, Tensor):
        raise TypeError(f"{op}: rows must be a torch.Tensor, got {type(rows).__name__}")
    _checks.require(rows.dtype == torch.int64, op, "rows", "of dtype torch.int64", rows.dtype, TypeError)
    _checks.require(tuple(rows.shape) == (n,), op, "rows", f"of shape [{n}]", list(rows.shape))
    if rows.device.type != "cpu" or torch.compiler.is_compiling() or n == 0:
        return
    low, high = (int(edge) for edge in torch.aminmax(rows))
    _checks.require(0 <= low and high < stocks, op, "rows", f"from 0 to {stocks - 1}", f"{low} to {high}")


def predefined_concepts(x: Tensor, membership: Tensor, offsets: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
    """The concepts of each day: sums of their stocks, a stock's share shrinking with the size of the concept.

    With w the membership of the day's stocks and S_k the sum of w_ik over them, concept k is the sum over i of
    w_ik / (S_k w_ik + 1) x_i. A concept without stock is zero, exactly.

    Args:
        x: [N, H] floating point, stocks.
        membership: [N, K] of any dtype, how much a stock belongs to each concept; mostly zeros, which are passed over. Where it
            requires a gradient, the reference runs.
        offsets: int64 [days + 1] rising from 0 to N, on x's device or the CPU: day d is the rows [offsets[d], offsets[d + 1]).
            None: one day.
        rows: int64 [N], the row of membership, then of any number of rows, of each row of x, as in `membership[rows]`, which is not
            made. None: row by row. Negative ones do not count from the end; on a GPU nobody checks them.

    Returns:
        [days * K, H] in x's dtype, day by day.

    Raises:
        TypeError, ValueError: x that is not a floating-point [N, H]; membership that is not [N, K] on x's device; rows that are not
            int64 [N] within membership; offsets that are not int64 or do not rise from 0 to N.

    Source: Xu et al., "HIST: A Graph-based Framework for Stock Trend Forecasting via Mining Concept-Oriented Shared Information",
    2021, arXiv:2110.13716; Qlib's HISTModel, predefined concept module.
    """
    op = "predefined_concepts"
    _checks.require_float(op, "x", x)
    _checks.require_rank(op, "x", x, 2, "[N, H]")
    if not isinstance(membership, Tensor):
        raise TypeError(f"{op}: membership must be a torch.Tensor, got {type(membership).__name__}")
    n = x.shape[0]
    expected = "[rows, K]" if rows is not None else f"[{n}, K]"
    _checks.require_rank(op, "membership", membership, 2, expected)
    if rows is None:
        _checks.require(membership.shape[0] == n, op, "membership", f"of shape {expected}", list(membership.shape))
    _checks.require(membership.device == x.device, op, "membership", f"on {x.device}", membership.device)
    _check_rows(op, rows, n, membership.shape[0])
    _days.check_offsets(op, offsets, n)
    (x,) = _checks.autocast(x)
    membership = membership.to(x.dtype)
    differentiated = membership.requires_grad and torch.is_grad_enabled()
    return _backend.run(
        PREDEFINED_CONCEPTS,
        reference.predefined_concepts,
        x,
        x,
        membership,
        _days.on_device(offsets, x.device),
        _days.on_device(rows, x.device),
        limit=lambda kernel: "membership requires a gradient" if differentiated else None,
    )[0]
