"""linear: the product of a linear layer whose rows may be masked first. On the CPU it has a kernel of its own, because the BLAS in
PyTorch's wheels is slow on products this thin (a depth of 64 to 256); elsewhere it is torch's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _backend, _checks
from .._library import Formula, define
from . import reference


def _setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, ops, grad: Tensor):
    x, weight, mask = ctx.saved_tensors
    needs = ctx.needs_input_grad
    gradients = ops.linear_backward(grad, x, weight, mask, *needs)
    return tuple(g if need else None for g, need in zip(gradients, needs, strict=True))


LINEAR = define(
    "linear",
    "(Tensor x, Tensor weight, Tensor? mask) -> Tensor",
    fake=lambda x, weight, mask: x.new_empty(x.shape[0], weight.shape[0]),
    formula=Formula(_setup, _backward),
)


def _fake_backward(grad, x, weight, mask, x_needs_grad, weight_needs_grad, mask_needs_grad):
    nothing = x.new_empty(0)
    return (
        x.new_empty(x.shape) if x_needs_grad else nothing,
        weight.new_empty(weight.shape) if weight_needs_grad else torch.empty_like(nothing),
        x.new_empty(x.shape) if mask_needs_grad else torch.empty_like(nothing),
    )


define(
    "linear_backward",
    "(Tensor grad, Tensor x, Tensor weight, Tensor? mask, bool x_needs_grad, bool weight_needs_grad, bool mask_needs_grad) "
    "-> (Tensor, Tensor, Tensor)",
    fake=_fake_backward,
)


def linear(x: Tensor, weight: Tensor, mask: Tensor | None = None) -> Tensor:
    """`(x * mask) @ weight.T`, without keeping or ever forming the whole product `x * mask`.

    Args:
        x: [B, K] floating point.
        weight: [N, K].
        mask: [B, K] or None.

    Returns:
        [B, N] in x's dtype, each row the same bits in whatever batch it comes; under autocast in that of torch.nn.functional.linear.

    Raises:
        TypeError, ValueError: wrong dtype, rank or shapes.

    Source: torch.nn.functional.linear.
    """
    op = "linear"
    _checks.require_float(op, "x", x)
    _checks.require_rank(op, "x", x, 2, "[B, K]")
    if torch.is_autocast_enabled(x.device.type):
        return reference.linear(x, weight, mask)
    _checks.require_rank(op, "weight", weight, 2, "[N, K]")
    _checks.require_like(op, "weight", weight, x, (weight.shape[0], x.shape[1]))
    _checks.require_like(op, "mask", mask, x, tuple(x.shape))
    return _backend.run(LINEAR, reference.linear, x, x, weight, mask)
