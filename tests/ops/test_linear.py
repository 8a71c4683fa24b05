"""What is linear's own, beside the contract."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from alphakernels import ops


def test_a_row_does_not_depend_on_its_batch() -> None:
    x, weight, mask = torch.randn(300, 70), torch.randn(50, 70), torch.rand(300, 70)
    whole = ops.linear(x, weight, mask)
    for rows in (1, 5, 12, 131):
        assert torch.equal(ops.linear(x[-rows:], weight, mask[-rows:]), whole[-rows:])


def test_autocast_is_that_of_torchs_linear() -> None:
    x, weight = torch.randn(200, 8, requires_grad=True), torch.randn(3, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ops.linear(x, weight)
        assert out.dtype == torch.bfloat16 and torch.equal(out, F.linear(x, weight))
    assert [g.dtype for g in torch.autograd.grad(out.sum(), (x, weight))] == [torch.float32] * 2


@pytest.mark.parametrize("given", [("x",), ("weight",), ("mask",), ("x", "mask")], ids="-".join)
def test_gradients_of_what_is_asked_for_alone(given) -> None:
    inputs = {"x": torch.randn(150, 9), "weight": torch.randn(4, 9), "mask": torch.rand(150, 9)}
    for name in given:
        inputs[name].requires_grad_()
    leaves = [inputs[name] for name in given]
    upstream = torch.randn(150, 4)
    actual = torch.autograd.grad(ops.linear(**inputs), leaves, upstream)
    expected = torch.autograd.grad(F.linear(inputs["x"] * inputs["mask"], inputs["weight"]), leaves, upstream)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)
