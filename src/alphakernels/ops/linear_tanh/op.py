"""linear_tanh: a linear layer and a tanh over each step of a sequence in one pass. On the CPU it has a kernel of its own, because torch
takes three passes over [B, T, N], and a copy of x before them where a feature's days lie side by side; elsewhere it is torch's.
"""

from __future__ import annotations

from torch import Tensor

from .. import _backend, _checks
from .._library import Formula, define
from . import reference


def _setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs, output)


def _backward(ctx, ops, grad: Tensor):
    x, weight, bias, y = ctx.saved_tensors
    x_needs_grad, weight_needs_grad, bias_needs_grad = ctx.needs_input_grad
    dx, dweight, dbias = ops.linear_tanh_backward(grad, x, weight, bias, y, x_needs_grad)
    return dx if x_needs_grad else None, dweight if weight_needs_grad else None, dbias if bias_needs_grad else None


LINEAR_TANH = define(
    "linear_tanh",
    "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    fake=lambda x, weight, bias: x.new_empty(*x.shape[:2], weight.shape[0]),
    formula=Formula(_setup, _backward),
)
define(
    "linear_tanh_backward",
    "(Tensor grad, Tensor x, Tensor weight, Tensor? bias, Tensor y, bool x_needs_grad) -> (Tensor, Tensor, Tensor)",
    fake=lambda grad, x, weight, bias, y, x_needs_grad: (
        x.new_empty(x.shape if x_needs_grad else 0),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape[0]),
    ),
)


def linear_tanh(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`tanh(x @ weight.T + bias)` of each step of a sequence: ALSTM's input layer.

    Args:
        x: [B, T, K] floating point, in any layout.
        weight: [N, K].
        bias: [N] or None.

    Returns:
        [B, T, N] in x's dtype, each row the same bits in whatever batch it comes.

    Raises:
        TypeError, ValueError: wrong dtype, rank or shapes.

    Source: the input layer of Qlib's ALSTMModel.
    """
    op = "linear_tanh"
    _checks.require_float(op, "x", x)
    _checks.require_rank(op, "x", x, 3, "[B, T, K]")
    x, weight, bias = _checks.autocast(x, weight, bias)
    _checks.require_rank(op, "weight", weight, 2, "[N, K]")
    _checks.require_like(op, "weight", weight, x, (weight.shape[0], x.shape[2]))
    _checks.require_like(op, "bias", bias, x, (weight.shape[0],))
    return _backend.run(LINEAR_TANH, reference.linear_tanh, x, x, weight, bias)
