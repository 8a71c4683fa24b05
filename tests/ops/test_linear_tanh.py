"""What is linear_tanh's own, beside the contract."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from alphakernels import nn, ops


def test_a_row_does_not_depend_on_its_batch_or_layout() -> None:
    x, weight, bias = torch.randn(300, 7, 11), torch.randn(50, 11), torch.randn(50)
    whole = ops.linear_tanh(x, weight, bias)
    for rows in (1, 5, 131):
        assert torch.equal(ops.linear_tanh(x[-rows:], weight, bias), whole[-rows:])
    for order in ((0, 2, 1), (2, 0, 1), (1, 0, 2)):  # the same numbers in other places of memory
        back = [order.index(i) for i in range(3)]
        assert torch.equal(ops.linear_tanh(x.permute(order).contiguous().permute(back), weight, bias), whole)


def test_windows_that_slide_along_a_history_are_the_same_bits_as_apart(sliding_windows) -> None:
    x, weight, bias = sliding_windows(12, 6), torch.randn(50, 6), torch.randn(50)
    found = ops.linear_tanh(x, weight, bias)
    apart = torch.cat([ops.linear_tanh(row[None], weight, bias) for row in x])
    assert torch.equal(found.nan_to_num(nan=9.0), apart.nan_to_num(nan=9.0))
    assert found.isnan().any(2).any(1).sum() == 2


def test_threads_do_not_change_a_bit(threads) -> None:
    x, upstream = torch.randn(301, 20, 9), torch.randn(301, 20, 33)
    weight, bias = torch.randn(33, 9, requires_grad=True), torch.randn(33, requires_grad=True)
    found = []
    for number in (1, 2, 3):
        threads(number)
        y = ops.linear_tanh(x, weight, bias)
        found.append((y, *torch.autograd.grad(y, (weight, bias), upstream)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


@pytest.mark.parametrize("given", [("x",), ("weight",), ("bias",), ("x", "bias")], ids="-".join)
def test_gradients_of_what_is_asked_for_alone(given) -> None:
    inputs = {"x": torch.randn(30, 5, 9), "weight": torch.randn(4, 9), "bias": torch.randn(4)}
    for name in given:
        inputs[name].requires_grad_()
    leaves, upstream = [inputs[name] for name in given], torch.randn(30, 5, 4)
    actual = torch.autograd.grad(ops.linear_tanh(**inputs), leaves, upstream)
    expected = torch.autograd.grad(torch.tanh(F.linear(inputs["x"], inputs["weight"], inputs["bias"])), leaves, upstream)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty(shape) -> None:
    x = torch.empty(shape, requires_grad=True)
    weight, bias = torch.randn(5, shape[2], requires_grad=True), torch.randn(5, requires_grad=True)
    y = ops.linear_tanh(x, weight, bias)
    torch.testing.assert_close(y, torch.tanh(F.linear(x, weight, bias)))
    actual = torch.autograd.grad(y.sum(), (x, weight, bias))
    expected = torch.autograd.grad(torch.tanh(F.linear(x, weight, bias)).sum(), (x, weight, bias))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


def test_the_module_is_the_sequential_it_stands_for() -> None:
    module, x = nn.LinearTanh(6, 20), torch.randn(9, 4, 6)
    torch.testing.assert_close(module(x), torch.nn.Sequential.forward(module, x))
    assert list(module.state_dict()) == ["fc_in.weight", "fc_in.bias"]
