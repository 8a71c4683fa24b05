"""glu_layer: TabNet's GLU with its linear layer. On the CPU one kernel takes some thousand rows at a time through product, norm and
gate while they are in cache, and neither the gradient of the product nor that of the residual is ever a tensor of its own;
elsewhere it is torch's product and `glu_block`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _backend, _checks
from .._library import Formula, define
from ..ghost_batch_norm.op import check_norm_arguments, fake_statistics, update_running
from ..glu_block.op import glu_block
from ..linear import reference as _linear


def _fake(
    x,
    fc,
    mask,
    weight,
    bias,
    running_mean,
    running_var,
    linear_bias,
    residual,
    virtual_batch_size,
    training,
    momentum,
    eps,
    scale,
    save,
):
    u = x.new_empty(x.shape[0] if save else 0, fc.shape[0])
    rows = x.new_empty(x.shape[0], fc.shape[0])
    return x.new_empty(x.shape[0], fc.shape[0] // 2), u, *fake_statistics(rows, running_mean, virtual_batch_size, training)


def _setup(ctx, inputs, output) -> None:
    x, fc, mask, weight, bias, _, _, linear_bias, ctx.residual, ctx.virtual_batch_size, ctx.training, _, _, ctx.scale, save = inputs
    if not save:
        raise RuntimeError("glu_layer: call it with save=True where gradients are needed")
    ctx.given = tuple(t is not None for t in (weight, bias, linear_bias))
    ctx.save_for_backward(x, fc, mask, weight, bias, *output[1:4])
    ctx.set_materialize_grads(False)


def _backward(ctx, ops, grad: Tensor | None, *_):
    if grad is None:
        return (None,) * 15
    x, fc, mask, weight, bias, u, mean, rstd = ctx.saved_tensors
    needs = ctx.needs_input_grad
    dx, dfc, dmask, dweight, dbias = ops.glu_layer_backward(
        grad,
        x,
        fc,
        mask,
        weight,
        bias,
        u,
        mean,
        rstd,
        ctx.residual,
        ctx.virtual_batch_size,
        ctx.training,
        ctx.scale,
        *needs[:3],
    )
    dlinear_bias = None
    if needs[7]:  # the norm cancels it in training
        dlinear_bias = torch.zeros_like(dbias) if ctx.training else dbias * rstd[0] * (1 if weight is None else weight)
    gradients = (dx, dfc, dmask, dweight, dbias, None, None, dlinear_bias)
    return (*(g if need else None for g, need in zip(gradients, needs, strict=False)), *(None,) * 7)


GLU_LAYER = define(
    "glu_layer",
    "(Tensor x, Tensor fc, Tensor? mask, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, "
    "Tensor? linear_bias, bool residual, int virtual_batch_size, bool training, float momentum, float eps, float scale, bool save) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_fake,
    formula=Formula(_setup, _backward),
)


def _fake_backward(
    grad, x, fc, mask, weight, bias, u, mean, rstd, residual, virtual_batch_size, training, scale, x_needs, fc_needs, mask_needs
):
    columns = fc.shape[0]
    return (
        x.new_empty(x.shape if x_needs else 0),
        x.new_empty(fc.shape if fc_needs else 0),
        x.new_empty(x.shape if mask_needs else 0),
        mean.new_empty(columns),
        mean.new_empty(columns),
    )


define(
    "glu_layer_backward",
    "(Tensor grad, Tensor x, Tensor fc, Tensor? mask, Tensor? weight, Tensor? bias, Tensor u, Tensor mean, Tensor rstd, "
    "bool residual, int virtual_batch_size, bool training, float scale, bool x_needs_grad, bool fc_needs_grad, "
    "bool mask_needs_grad) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_fake_backward,
)


def glu_layer(
    x: Tensor,
    fc: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    virtual_batch_size: int = 1024,
    training: bool = True,
    momentum: float = 0.01,
    eps: float = 1e-5,
    linear_bias: Tensor | None = None,
    mask: Tensor | None = None,
    residual: bool = False,
    scale: float = 1.0,
) -> Tensor:
    """TabNet's GLU layer: `glu_block((x * mask) @ fc.T)`, to which x itself is added where it has a residual.

    Args:
        x: [B, K] floating point.
        fc: [2H, K], the weight of the linear layer.
        weight, bias, running_mean, running_var: [2H] or None, of the norm; the running statistics are updated in place in training
            and needed in evaluation.
        virtual_batch_size, training, momentum, eps: as in `ghost_batch_norm`.
        linear_bias: [2H], the bias of the linear layer, or None.
        mask: [B, K] or None, multiplied into x.
        residual: `(x + gated) * scale` in place of `gated * scale`; needs K == H, and no mask.
        scale: factor on the sum, sqrt(0.5) in TabNet.

    Returns:
        [B, H] in x's dtype.

    Raises:
        TypeError, ValueError: as `linear` and `glu_block`; a residual with K != H or with a mask.

    Source: Arik & Pfister 2019, arXiv:1908.07442, figure 4; Qlib's GLU and FeatureTransformer.
    """
    op = "glu_layer"
    _checks.require_float(op, "x", x)
    _checks.require_rank(op, "x", x, 2, "[B, K]")
    _checks.require_rank(op, "fc", fc, 2, "[2H, K]")
    rows, columns = x.shape[0], fc.shape[0]
    if columns % 2:
        _checks.require(False, op, "fc", f"of shape [2H, {x.shape[1]}]", list(fc.shape))
    if fc.shape[1] != x.shape[1]:  # x is likelier the wrong one
        _checks.require(False, op, "x", f"of {fc.shape[1]} columns, as fc has", list(x.shape))
    if residual:
        _checks.require(mask is None, op, "mask", "None where there is a residual", "one")
        _checks.require(x.shape[1] * 2 == columns, op, "x", f"of {columns // 2} columns to be the residual", list(x.shape))
    norm = dict(weight=weight, bias=bias, running_mean=running_mean, running_var=running_var, linear_bias=linear_bias)
    options = dict(virtual_batch_size=virtual_batch_size, training=training, momentum=momentum, eps=eps)
    normed = training or running_mean is not None
    if not normed or _backend.choose(GLU_LAYER, x) != "cpp" or torch.is_autocast_enabled(x.device.type):
        u = _linear.linear(x, fc, mask)
        return glu_block(u, **norm, **options, residual=x if residual else None, scale=scale)
    _checks.require_like(op, "fc", fc, x, (columns, x.shape[1]))
    _checks.require_like(op, "mask", mask, x, (rows, x.shape[1]))
    check_norm_arguments(op, x, "x", norm, virtual_batch_size, training, columns)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, fc, mask, *norm.values()))
    out, _, _, _, new_mean, new_var = _backend.run(
        GLU_LAYER, glu_layer, x, x, fc, mask, *norm.values(), residual, *options.values(), float(scale), save
    )
    if training:
        update_running(running_mean, running_var, new_mean, new_var)
    return out
