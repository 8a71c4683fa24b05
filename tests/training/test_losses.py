"""Losses: the mean over what was observed, and no gradient from what was not."""

from __future__ import annotations

import pytest
import torch

from alphakernels.training import mse


def test_mse_is_the_mean_over_observed_labels():
    torch.manual_seed(0)
    prediction = torch.randn(63, dtype=torch.float64, requires_grad=True)
    label = torch.randn(63, dtype=torch.float64)
    label[::5] = float("nan")
    observed = ~torch.isnan(label)
    loss = mse(prediction, label)
    (gradient,) = torch.autograd.grad(loss, prediction)
    expected = ((prediction[observed] - label[observed]) ** 2).mean()
    (expected_gradient,) = torch.autograd.grad(expected, prediction)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    assert (gradient[~observed] == 0).all()


def test_mse_without_labels_is_zero_and_in_the_graph():
    prediction = torch.randn(7, requires_grad=True)
    loss = mse(prediction, torch.full((7,), float("nan")))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(prediction.grad, torch.zeros(7))


def test_mse_keeps_an_infinite_label_infinite():
    assert mse(torch.zeros(3), torch.tensor([0.0, float("inf"), 1.0])).item() == float("inf")


def test_mse_refuses_to_broadcast():
    with pytest.raises(ValueError, match=r"label must have the prediction's shape \(4, 1\), got \(4,\)"):
        mse(torch.zeros(4, 1), torch.zeros(4))
