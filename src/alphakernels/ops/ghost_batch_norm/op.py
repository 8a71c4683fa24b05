"""ghost_batch_norm: batch norm over virtual batches, one call for all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _backend, _checks
from .._library import Formula, define
from . import reference

_TRITON = "alphakernels.ops.ghost_batch_norm.triton"


def statistics_dtype(x: Tensor) -> torch.dtype:
    """Statistics are kept in float32, in float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def fake_statistics(
    x: Tensor, running_mean: Tensor | None, virtual_batch_size: int, training: bool, norm: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shapes of mean, rstd [C, F] and of the new running statistics [F] (or [0])."""
    rows, features = x.shape
    chunks = len(reference.chunk_sizes(rows, virtual_batch_size)) if training else int(norm)
    running = features if training and running_mean is not None else 0
    dtype = statistics_dtype(x)
    return tuple(x.new_empty(shape, dtype=dtype) for shape in ((chunks, features), (chunks, features), (running,), (running,)))


def _fake(x, weight, bias, running_mean, running_var, linear_bias, virtual_batch_size, training, momentum, eps):
    return x.new_empty(x.shape), *fake_statistics(x, running_mean, virtual_batch_size, training)


def linear_bias_gradient(ctx, dx: Tensor) -> Tensor | None:
    """Of the bias folded into the norm: exactly zero in training, where the norm cancels it."""
    if not ctx.linear_bias_needs_grad:
        return None
    return dx.new_zeros(dx.shape[1]) if ctx.training else dx.sum(0)


def _setup(ctx, inputs, output) -> None:
    x, weight, bias, _, _, linear_bias, ctx.virtual_batch_size, ctx.training, _, _ = inputs
    ctx.has_weight, ctx.has_bias = weight is not None, bias is not None
    ctx.linear_bias_needs_grad = ctx.needs_input_grad[5]
    ctx.save_for_backward(x, weight, output[1], output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx, ops, grad: Tensor | None, *_):
    x, weight, mean, rstd = ctx.saved_tensors
    if grad is None:
        return (None,) * 10
    dx, dweight, dbias = ops.ghost_batch_norm_backward(grad, x, weight, mean, rstd, ctx.virtual_batch_size, ctx.training)
    return (
        dx,
        dweight if ctx.has_weight else None,
        dbias if ctx.has_bias else None,
        None,
        None,
        linear_bias_gradient(ctx, dx),
        *(None,) * 4,
    )


GHOST_BATCH_NORM = define(
    "ghost_batch_norm",
    "(Tensor x, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, Tensor? linear_bias, "
    "int virtual_batch_size, bool training, float momentum, float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_fake,
    formula=Formula(_setup, _backward),
    triton=_TRITON,
)


def _fake_backward(grad, x, weight, mean, rstd, virtual_batch_size, training):
    columns = mean.new_empty(x.shape[1])
    return x.new_empty(x.shape), columns, torch.empty_like(columns)


define(
    "ghost_batch_norm_backward",
    "(Tensor grad, Tensor x, Tensor? weight, Tensor mean, Tensor rstd, int virtual_batch_size, bool training) -> (Tensor, Tensor, Tensor)",
    fake=_fake_backward,
    triton=_TRITON,
)


def check_norm_arguments(
    op: str,
    x: Tensor,
    what: str,
    columns: dict[str, Tensor | None],
    virtual_batch_size: int,
    training: bool,
    features: int | None = None,
) -> None:
    """What the ops with a ghost norm refuse alike; `features` if the norm is not over x's own columns."""
    shape, device = (x.shape[1] if features is None else features,), x.device
    for name, tensor in columns.items():
        if tensor is not None and not (tensor.device == device and tensor.shape == shape):
            _checks.require(tensor.device == device, op, name, f"on {device}", tensor.device)
            _checks.require(False, op, name, f"of shape {list(shape)}", list(tensor.shape))
    both = "running_mean and running_var"
    given = (columns["running_mean"] is None) == (columns["running_var"] is None)
    _checks.require(given, op, both, "given together", "one without the other")
    _checks.require(virtual_batch_size >= 1, op, "virtual_batch_size", "at least 1", virtual_batch_size)
    if training:
        sizes = reference.chunk_sizes(x.shape[0], virtual_batch_size)
        _checks.require(
            min(sizes) > 1,
            op,
            what,
            "of more than one row in every virtual batch when training",
            f"{x.shape[0]} rows in virtual batches of {virtual_batch_size}",
        )


def update_running(running_mean: Tensor | None, running_var: Tensor | None, new_mean: Tensor, new_var: Tensor) -> None:
    """Writes the running statistics after a training call, as torch.nn.functional.batch_norm does."""
    if running_mean is not None:
        with torch.no_grad():
            running_mean.copy_(new_mean)
            running_var.copy_(new_var)


def ghost_batch_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    virtual_batch_size: int,
    training: bool = True,
    momentum: float = 0.01,
    eps: float = 1e-5,
    linear_bias: Tensor | None = None,
) -> Tensor:
    """Batch norm over virtual batches: each chunk of rows is normalised by its own statistics.

    The chunks are those of `torch.chunk(x, B // virtual_batch_size)` (one chunk if B <= virtual_batch_size), as in Qlib's GBN; a
    last chunk of a single row, at which Qlib fails, joins the chunk before it.

    Args:
        x: [B, F] floating point.
        weight, bias: [F] or None.
        running_mean, running_var: [F] or None; as in `torch.nn.functional.batch_norm` they are updated in place in training, chunk
            after chunk in order, and used in evaluation.
        virtual_batch_size: rows of a virtual batch, at least 1.
        training: normalise by each chunk's statistics (True) or by the running ones.
        momentum, eps: as in torch.nn.BatchNorm1d.
        linear_bias: [F], the bias of the linear layer that made x, if it was left out there: training cancels it (its gradient
            is exactly zero), the running mean and evaluation take it into account.

    Returns:
        [B, F] in x's dtype.

    Raises:
        TypeError, ValueError: wrong dtype, rank or shapes; virtual_batch_size < 1; a virtual batch of one row in training;
            evaluation without running statistics.

    Source: Hoffer et al. 2017, arXiv:1705.08741; Arik & Pfister 2019, arXiv:1908.07442; Qlib's GBN.
    """
    op = "ghost_batch_norm"
    _checks.require_float(op, "x", x)
    _checks.require_rank(op, "x", x, 2, "[B, F]")
    (x,) = _checks.autocast(x)
    columns = dict(weight=weight, bias=bias, running_mean=running_mean, running_var=running_var, linear_bias=linear_bias)
    check_norm_arguments(op, x, "x", columns, virtual_batch_size, training)
    _checks.require(training or running_mean is not None, op, "running_mean", "given in evaluation", None)
    y, _, _, new_mean, new_var = _backend.run(
        GHOST_BATCH_NORM, reference.ghost_batch_norm, x, x, *columns.values(), virtual_batch_size, training, momentum, eps
    )
    if training:
        update_running(running_mean, running_var, new_mean, new_var)
    return y
