"""Comparisons that name the tensor that differs, and where."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .tolerances import TOLERANCES, Tolerance

Tensors = Mapping[str, Tensor | None]


def assert_close(
    name: str, actual: Tensor, expected: Tensor, dtype: torch.dtype | None = None, tolerance: Tolerance | None = None
) -> None:
    """`actual` is `expected` within the tolerance of `dtype` (that of `actual` if not given); NaN and infinity at
    the same places.

    Raises:
        AssertionError: names the tensor, the worst element, its place and both values.
    """
    tolerance = tolerance or TOLERANCES.get(dtype or actual.dtype, Tolerance(0, 0))  # integers are equal or wrong
    if actual.shape != expected.shape:
        raise AssertionError(f"{name}: shape {list(actual.shape)}, expected {list(expected.shape)}")
    a, e = actual.detach().cpu().double(), expected.detach().cpu().double()
    same = (a == e) | (a.isnan() & e.isnan())
    finite = e[e.isfinite()].abs()
    largest = finite.max().item() if finite.numel() else 0.0
    allowed = tolerance.relative * e.abs() + tolerance.of_largest * largest + tolerance.absolute
    excess = torch.where(same, -torch.inf, torch.nan_to_num((a - e).abs() - allowed, nan=torch.inf))
    if excess.numel() and excess.max() > 0:
        worst = int(excess.argmax())
        place = [int(i) for i in torch.unravel_index(torch.tensor(worst), excess.shape)]
        wrong = int((excess > 0).sum())
        raise AssertionError(
            f"{name}: {wrong} of {excess.numel()} elements differ; worst at {place}: {a.flatten()[worst]:.9g}, "
            f"expected {e.flatten()[worst]:.9g} +- {allowed.flatten()[worst]:.3g}"
        )


def assert_no_worse_than_eager(name: str, actual: Tensor, eager: Tensor, exact: Tensor, factor: float = 2.0) -> None:
    """`actual` is no further from `exact` (float64) than `eager`, of the same dtype as `actual`, is: `factor` times
    in root mean square, twice that in the worst element. One unit in the last place of the largest element is always
    allowed.

    Errors are compared as statistics: give it a hundred numbers or more.

    Raises:
        AssertionError: names the tensor and both errors.
    """
    exact = exact.detach().cpu().double()
    ulp = torch.finfo(actual.dtype).eps * exact.abs().max()
    ours, theirs = ((t.detach().cpu().double() - exact).abs() for t in (actual, eager))
    for what, a, e, allowed in (
        ("root mean square", ours.square().mean().sqrt(), theirs.square().mean().sqrt(), factor),
        ("worst", ours.max(), theirs.max(), 2 * factor),
    ):
        if not a <= allowed * e + ulp:
            raise AssertionError(f"{name}: {what} error {a:.3g} against float64, eager's is {e:.3g}")


def outputs_and_gradients(
    function: Callable[[Tensors], Tensors], inputs: Tensors, needs_grad: tuple[str, ...], seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs, and gradients of a random linear combination of them that is the same for every dtype and device."""
    inputs = {name: t.detach().clone() if t is not None else None for name, t in inputs.items()}
    for name in needs_grad:
        inputs[name].requires_grad_()
    outputs = dict(function(inputs))
    generator = torch.Generator().manual_seed(seed + 1)
    loss = 0
    for output in outputs.values():
        weights = torch.randn(output.shape, generator=generator).to(output)
        if output.requires_grad:
            loss = loss + (output * weights).sum()
    gradients = torch.autograd.grad(loss, [inputs[name] for name in needs_grad])
    return {name: t.detach() for name, t in outputs.items()}, dict(zip(needs_grad, gradients, strict=True))
