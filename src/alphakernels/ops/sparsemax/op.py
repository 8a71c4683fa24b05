"""sparsemax: the public function, the schema, the fake implementation and the autograd formula."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _backend, _checks
from .._library import Formula, define
from . import reference

_TRITON = "alphakernels.ops.sparsemax.triton"


def _save_mask(ctx, inputs, output) -> None:
    ctx.save_for_backward(output)


def _backward(ctx, ops, grad: Tensor) -> Tensor:
    (mask,) = ctx.saved_tensors
    return ops.sparsemax_backward(grad, mask)


def _save_support(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[1])


def _double_backward(ctx, ops, grad: Tensor) -> tuple[Tensor, None]:
    # The gradient is linear in `grad` and self-adjoint; the support does not move, almost everywhere.
    (mask,) = ctx.saved_tensors
    return ops.sparsemax_backward(grad, mask), None


SPARSEMAX = define(
    "sparsemax",
    "(Tensor x) -> Tensor",
    fake=lambda x: torch.empty_like(x, memory_format=torch.contiguous_format),
    formula=Formula(_save_mask, _backward),
    triton=_TRITON,
)
define(
    "sparsemax_backward",
    "(Tensor grad, Tensor mask) -> Tensor",
    fake=lambda grad, mask: torch.empty_like(grad, memory_format=torch.contiguous_format),
    formula=Formula(_save_support, _double_backward),
    triton=_TRITON,
)


def sparsemax(x: Tensor, dim: int = -1) -> Tensor:
    """Sparsemax along `dim`: the Euclidean projection of each slice onto the probability simplex.

    `p = max(x - tau, 0)` with tau fixed by `sum(p) = 1`; unlike softmax it gives exact zeros. No sort is made: Newton's
    iteration finds tau exactly in a handful of passes.

    Args:
        x: any shape, floating point (C++ kernel: float32, float64; Triton: float32, bfloat16, float16; any on the reference).
        dim: the dimension along which the result sums to one; negative counts from the end.

    Returns:
        A tensor of x's shape, dtype and device. A slice that holds a NaN or +inf, or is -inf throughout, gives NaN, as
        softmax does; single -inf entries get zero.

    Raises:
        TypeError: x is not a floating-point tensor.
        IndexError: x has no dimension `dim`.

    Source: Martins & Astudillo, "From Softmax to Sparsemax", 2016, arXiv:1602.02068.
    """
    _checks.require_float("sparsemax", "x", x)
    if not -max(x.dim(), 1) <= dim < max(x.dim(), 1):
        raise IndexError(f"sparsemax: dim must be in [{-max(x.dim(), 1)}, {max(x.dim(), 1) - 1}], got {dim}")
    (x,) = _checks.autocast(x)
    if x.dim() == 0:
        return _backend.run(SPARSEMAX, reference.sparsemax, x, x.reshape(1)).reshape(())
    if dim in (-1, x.dim() - 1):
        return _backend.run(SPARSEMAX, reference.sparsemax, x, x)
    last = x.movedim(dim, -1)
    return _backend.run(SPARSEMAX, reference.sparsemax, x, last).movedim(-1, dim)
