"""What is attention_pool's own, beside the contract."""

from __future__ import annotations

import pytest
import torch

import alphakernels as ak
from alphakernels import ops
from alphakernels.testing import assert_close


def parameters(hidden, attention=7):
    return torch.randn(attention, hidden), torch.randn(attention), torch.randn(attention)


def test_weights_are_a_distribution_and_equal_states_pool_to_themselves():
    h = torch.randn(9, 1, 20).expand(9, 31, 20)
    out, weights = ops.attention_pool(h, *parameters(20), return_weights=True)
    assert_close("weights", weights, torch.full((9, 31), 1 / 31))
    assert torch.equal(out[:, :20], h[:, -1])
    assert_close("pooled", out[:, 20:], h[:, -1])
    _, weights = ops.attention_pool(torch.randn(9, 31, 20), *parameters(20), return_weights=True)
    assert (weights > 0).all()
    assert_close("sums", weights.sum(1), torch.ones(9))


def test_order_of_time_moves_the_last_state_alone():
    h, given = torch.randn(5, 40, 16), parameters(16)
    order = torch.randperm(40)
    out, weights = ops.attention_pool(h, *given, return_weights=True)
    shuffled, shuffled_weights = ops.attention_pool(h[:, order], *given, return_weights=True)
    assert_close("weights", shuffled_weights, weights[:, order])
    assert_close("pooled", shuffled[:, 16:], out[:, 16:])
    assert torch.equal(shuffled[:, :16], h[:, order[-1]])


def test_huge_scores_do_not_overflow():
    h = torch.randn(4, 10, 8)
    weight, bias, score = parameters(8)
    out, weights = ops.attention_pool(h, 1e4 * weight, bias, 1e4 * score, return_weights=True)
    assert out.isfinite().all() and weights.isfinite().all()
    assert_close("sums", weights.sum(1), torch.ones(4))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_no_rows(backend):
    h = torch.empty(0, 3, 8, requires_grad=True)
    given = [t.requires_grad_() for t in parameters(8)]
    with ak.use_backend(backend):
        out = ops.attention_pool(h, *given)
        assert out.shape == (0, 16)
        assert not any(g.any() for g in torch.autograd.grad(out.sum(), [h, *given]))


def test_gradient_of_the_weights_alone():
    h, given = torch.randn(3, 6, 8, dtype=torch.float64, requires_grad=True), [t.double() for t in parameters(8)]
    found = []
    for backend in ("cpp", "reference"):
        with ak.use_backend(backend):
            _, weights = ops.attention_pool(h, *given, return_weights=True)
            found.append(torch.autograd.grad(weights.square().sum(), h)[0])
    assert_close("gradient of h", *found)


def test_dropout_does_not_depend_on_threads_and_follows_manual_seed(threads):
    h, given = torch.randn(300, 9, 20), parameters(20, 10)
    draws = []
    for number, seed in ((1, 3), (2, 3), (3, 3), (2, 4)):
        threads(number)
        torch.manual_seed(seed)
        draws.append(ops.attention_pool(h, *given, dropout=0.5))
    assert torch.equal(draws[0], draws[1]) and torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[3])
