"""glu_block: ghost batch norm, gate and scaled residual of TabNet's feature transformer in one kernel."""

from __future__ import annotations

from torch import Tensor

from .. import _backend, _checks
from .._library import Formula, define
from ..ghost_batch_norm.op import check_norm_arguments, fake_statistics, linear_bias_gradient, update_running
from . import reference

_TRITON = "alphakernels.ops.glu_block.triton"


def _fake(u, residual, weight, bias, running_mean, running_var, linear_bias, virtual_batch_size, training, momentum, eps, scale):
    rows, columns = u.shape
    statistics = fake_statistics(u, running_mean, virtual_batch_size, training, norm=running_mean is not None)
    return u.new_empty(rows, columns // 2), *statistics


def _setup(ctx, inputs, output) -> None:
    u, _, weight, bias, running_mean, _, linear_bias, ctx.virtual_batch_size, ctx.training, _, _, ctx.scale = inputs
    ctx.has_weight, ctx.has_bias = weight is not None, bias is not None
    ctx.linear_bias_needs_grad = ctx.needs_input_grad[6]
    normed = ctx.training or running_mean is not None
    # Without a norm the linear layer's bias is all that shifts the gate.
    ctx.save_for_backward(u, weight if normed else None, bias if normed else linear_bias, output[1], output[2])
    ctx.normed = normed
    ctx.set_materialize_grads(False)


def _backward(ctx, ops, grad: Tensor | None, *_):
    u, weight, bias, mean, rstd = ctx.saved_tensors
    if grad is None:
        return (None,) * 12
    du, dresidual, dweight, dbias = ops.glu_block_backward(
        grad, u, weight, bias, mean, rstd, ctx.virtual_batch_size, ctx.training, ctx.scale, ctx.needs_input_grad[1]
    )
    return (
        du,
        dresidual if ctx.needs_input_grad[1] else None,
        dweight if ctx.has_weight and ctx.normed else None,
        dbias if ctx.has_bias and ctx.normed else None,
        None,
        None,
        linear_bias_gradient(ctx, du),
        *(None,) * 5,
    )


GLU_BLOCK = define(
    "glu_block",
    "(Tensor u, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, Tensor? linear_bias, "
    "int virtual_batch_size, bool training, float momentum, float eps, float scale) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_fake,
    formula=Formula(_setup, _backward),
    triton=_TRITON,
)


def _fake_backward(grad, u, weight, bias, mean, rstd, virtual_batch_size, training, scale, residual_needs_grad):
    columns = u.shape[1] if mean.shape[0] else 0
    dresidual = u.new_empty(u.shape[0] if residual_needs_grad else 0, u.shape[1] // 2)
    return u.new_empty(u.shape), dresidual, mean.new_empty(columns), mean.new_empty(columns)


define(
    "glu_block_backward",
    "(Tensor grad, Tensor u, Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd, int virtual_batch_size, bool training, "
    "float scale, bool residual_needs_grad) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=_fake_backward,
    triton=_TRITON,
)


def glu_block(
    u: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    virtual_batch_size: int = 1024,
    training: bool = True,
    momentum: float = 0.01,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    scale: float = 1.0,
    linear_bias: Tensor | None = None,
) -> Tensor:
    """TabNet's GLU block after its linear layer: `(residual + v[:, :H] * sigmoid(v[:, H:])) * scale`, v = ghost_batch_norm(u).

    Args:
        u: [B, 2H] floating point, the linear layer's output.
        weight, bias, running_mean, running_var: [2H] or None, of the norm; the running statistics are updated in place in training.
            In evaluation without running statistics there is no norm (it has been folded into the linear layer).
        virtual_batch_size, training, momentum, eps, linear_bias: as in `ghost_batch_norm`.
        residual: [B, H] or None.
        scale: factor on the sum, sqrt(0.5) in TabNet.

    Returns:
        [B, H] in u's dtype.

    Raises:
        TypeError, ValueError: as `ghost_batch_norm`; an odd number of columns; a residual that is not [B, H].

    Source: Arik & Pfister 2019, arXiv:1908.07442, figure 4; Qlib's GLU and FeatureTransformer.
    """
    op = "glu_block"
    _checks.require_float(op, "u", u)
    _checks.require_rank(op, "u", u, 2, "[B, 2H]")
    _checks.require(u.shape[1] % 2 == 0, op, "u", "of an even number of columns [B, 2H]", list(u.shape))
    u, residual = _checks.autocast(u, residual)
    _checks.require_like(op, "residual", residual, u, (u.shape[0], u.shape[1] // 2))
    columns = dict(weight=weight, bias=bias, running_mean=running_mean, running_var=running_var, linear_bias=linear_bias)
    check_norm_arguments(op, u, "u", columns, virtual_batch_size, training)
    out, _, _, new_mean, new_var = _backend.run(
        GLU_BLOCK,
        reference.glu_block,
        u,
        u,
        residual,
        *columns.values(),
        virtual_batch_size,
        training,
        momentum,
        eps,
        float(scale),
    )
    if training:
        update_running(running_mean, running_var, new_mean, new_var)
    return out
