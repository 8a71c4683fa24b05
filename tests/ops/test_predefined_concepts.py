"""HIST's predefined concepts against Qlib's own lines: empty concepts, weights, days, chosen rows, what is not finite, the edges."""

from __future__ import annotations

import pytest
import torch

import alphakernels as ak
from alphakernels import ops
from alphakernels.testing import Tolerance, assert_close

NEAR = Tolerance(1e-12, 1e-12)


@pytest.fixture(params=["auto", "reference"], autouse=True)
def backend(request):
    with ak.use_backend(request.param):
        yield request.param


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def members(n, k, density=0.1, seed=1):
    return (torch.rand(n, k, generator=torch.Generator().manual_seed(seed)) < density).double()


def qlibs(hidden, stock_to_concept):
    n = len(hidden)
    total = stock_to_concept.sum(0).reshape(1, -1).repeat(n, 1) * stock_to_concept + torch.ones_like(stock_to_concept)
    return (stock_to_concept / total).t().mm(hidden)


def both(call, plain, *leaves):
    results = []
    for function in (call, plain):
        given = [t.clone().requires_grad_() for t in leaves]
        out = function(*given)
        results.append((out, *torch.autograd.grad(out, given, randn(*out.shape, seed=9))))
    for i, (a, e) in enumerate(zip(*results, strict=True)):
        assert_close(f"result {i}", a, e, tolerance=NEAR)


@pytest.mark.parametrize("n, k, hidden", [(1, 1, 1), (3, 50, 9), (200, 733, 64), (37, 16, 130)])
@pytest.mark.parametrize("density", [0.05, 1.0])
def test_qlibs_lines(n, k, hidden, density):
    member = members(n, k, density)
    both(lambda x: ops.predefined_concepts(x, member), lambda x: qlibs(x, member), randn(n, hidden))
    member *= randn(n, k, seed=2).abs()
    both(lambda x: ops.predefined_concepts(x, member), lambda x: qlibs(x, member), randn(n, hidden))


def test_float32_is_as_near_as_qlibs():
    x, member = randn(200, 64), members(200, 733, 0.05)
    out = ops.predefined_concepts(x.float(), member.float())
    assert_close("float32", out, qlibs(x, member), tolerance=Tolerance(1e-6, 1e-6))


def test_membership_that_requires_a_gradient():
    both(ops.predefined_concepts, qlibs, randn(20, 5), members(20, 30, 0.3) * randn(20, 30, seed=2).abs())


def test_a_kernel_asked_for_says_why_it_cannot(backend):
    with ak.use_backend("cpp"), pytest.raises(RuntimeError, match="cannot run: membership requires a gradient"):
        ops.predefined_concepts(randn(4, 3), members(4, 2).requires_grad_())


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_membership_of_any_dtype(dtype):
    x, member = randn(30, 7), members(30, 11, 0.2)
    assert torch.equal(ops.predefined_concepts(x, member.to(dtype)), ops.predefined_concepts(x, member))


def test_days_together_are_days_apart():
    sizes, x, member = [4, 1, 0, 70], randn(75, 20), members(75, 40)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    grad, leaf = randn(4 * 40, 20, seed=3), x.clone().requires_grad_()
    out = ops.predefined_concepts(leaf, member, offsets)
    (dx,) = torch.autograd.grad(out, leaf, grad)
    for d, (a, b) in enumerate(zip(offsets, offsets[1:], strict=False)):
        day = x[a:b].clone().requires_grad_()
        alone = ops.predefined_concepts(day, member[a:b])
        assert torch.equal(out[d * 40 : (d + 1) * 40], alone)
        assert torch.equal(dx[a:b], torch.autograd.grad(alone, day, grad[d * 40 : (d + 1) * 40])[0])


def test_chosen_rows_are_the_gathered_ones():
    x, member = randn(60, 20), members(25, 40)
    rows = torch.randint(25, (60,), generator=torch.Generator().manual_seed(4))
    offsets = torch.tensor([0, 20, 60])
    results = []
    for call in (lambda x: ops.predefined_concepts(x, member, offsets, rows), lambda x: ops.predefined_concepts(x, member[rows], offsets)):
        leaf = x.clone().requires_grad_()
        out = call(leaf)
        results.append((out, torch.autograd.grad(out.square().sum(), leaf)[0]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_concept_without_stock_is_zero():
    member = members(50, 30, 0.3)
    member[:, [0, 7, 29]] = 0
    out = ops.predefined_concepts(randn(50, 9), member)
    assert not out[[0, 7, 29]].any() and out[1].any()
    assert not ops.predefined_concepts(randn(50, 9), torch.zeros(50, 30)).any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_what_is_not_finite(value):
    """As in the product with the zeros of membership: its column of its day, and nothing else."""
    x, member, offsets = randn(60, 9), members(60, 30, 0.2), torch.tensor([0, 40, 60])
    x[45, 3] = value
    x.requires_grad_()
    out = ops.predefined_concepts(x, member, offsets)
    broken = ~out.isfinite()
    assert broken[30:, 3].all() and broken.sum() == 30
    grad = randn(60, 9, seed=2)
    grad[12, 5] = value
    broken = ~torch.autograd.grad(out, x, grad)[0].isfinite()
    assert broken[:40, 5].all() and broken.sum() == 40


@pytest.mark.parametrize("offsets", [None, torch.tensor([0, 0, 0])], ids=["a day", "days"])
def test_no_stock(offsets):
    x = torch.empty(0, 4, requires_grad=True)
    days = 1 if offsets is None else 2
    out = ops.predefined_concepts(x, torch.empty(0, 3), offsets)
    assert out.shape == (3 * days, 4) and not out.any()
    assert torch.autograd.grad(out.sum(), x)[0].shape == (0, 4)


def test_no_day_and_no_concept():
    assert ops.predefined_concepts(torch.empty(0, 4), torch.empty(0, 3), torch.tensor([0])).shape == (0, 4)
    x = randn(5, 4).requires_grad_()
    for offsets in (None, torch.tensor([0, 2, 5])):
        out = ops.predefined_concepts(x, torch.empty(5, 0), offsets)
        assert out.shape == (0, 4)
        assert not torch.autograd.grad(out.sum(), x)[0].any()
