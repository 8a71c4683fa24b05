"""HIST's concepts against Qlib's own lines, quirks included: silent concepts, unchosen stocks, ties, permutations, days."""

from __future__ import annotations

import pytest
import torch

import alphakernels as ak
from alphakernels import ops
from alphakernels.testing import Tolerance, assert_close


@pytest.fixture(params=["auto", "reference"], autouse=True)
def backend(request):
    with ak.use_backend(request.param):
        yield request.param


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_cosine(x, y):
    return x @ y.T / (x.square().sum(1).sqrt()[:, None] * y.square().sum(1).sqrt() + 1e-6)


def plain_attention(x, concepts):
    concepts = concepts[concepts.sum(1) != 0]
    return torch.softmax(plain_cosine(x, concepts), 1) @ concepts


def plain_hidden(x):
    n = len(x)
    similarity = plain_cosine(x, x)
    others = similarity * (1 - torch.eye(n).double())
    links = torch.zeros(n, n).double()
    best = others.max(1)
    links[range(n), best.indices] = best.values
    links = links + torch.diag_embed((links.sum(0) != 0) * similarity.diagonal())
    return links.T @ x


def same(call, plain, *tensors):
    results = []
    for function in (call, plain):
        leaves = [t.clone().requires_grad_() for t in tensors]
        out = function(*leaves)
        results.append((out, *torch.autograd.grad(out, leaves, randn(*out.shape, seed=9))))
    for i, (a, e) in enumerate(zip(*results, strict=True)):
        assert_close(f"result {i}", a, e, tolerance=Tolerance(1e-10, 1e-11, 1e-15))


@pytest.mark.parametrize("n, m", [(1, 1), (2, 5), (3, 300), (20, 2), (300, 33)])
def test_attention(n, m):
    concepts = randn(m, 9, seed=1)
    concepts[m // 2 + 1 :: 3] = 0
    same(ops.concept_attention, plain_attention, randn(n, 9), concepts)


@pytest.mark.parametrize("n", [2, 3, 20, 257, 300])
def test_hidden_concepts(n):
    same(ops.hidden_concepts, plain_hidden, randn(n, 9))
    same(ops.hidden_concepts, plain_hidden, randn(n, 9) + 1)


def test_nobody_is_chosen_for_a_negative_similarity():
    x = torch.eye(3).double() * 2 - 1  # every pair's similarity is -1/3
    x[:, :] = torch.tensor([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]])[:, [0, 1, 1]]
    concepts = ops.hidden_concepts(x)
    assert not concepts.any()
    assert not ops.concept_attention(x, concepts).any()


def test_equal_stocks_choose_the_first_other():
    x = randn(1, 6).expand(5, 6).clone()
    concepts = ops.hidden_concepts(x)
    assert_close("first", concepts[0], 5 * x[0], tolerance=Tolerance(1e-6, 1e-6))  # four others and itself
    assert_close("second", concepts[1], 2 * x[0], tolerance=Tolerance(1e-6, 1e-6))
    assert not concepts[2:].any()


def test_one_stock_has_no_hidden_concept():
    assert not ops.hidden_concepts(randn(1, 4)).any()


def test_permuting_the_stocks():
    x, order = randn(120, 8), torch.randperm(120, generator=torch.Generator().manual_seed(2))
    assert_close("concepts", ops.hidden_concepts(x[order]), ops.hidden_concepts(x)[order], tolerance=Tolerance(1e-11, 1e-12))
    concepts, columns = randn(40, 8, seed=1), torch.randperm(40, generator=torch.Generator().manual_seed(3))
    assert_close("out", ops.concept_attention(x[order], concepts[columns]), ops.concept_attention(x, concepts)[order])


def test_concepts_of_all_zeros_and_none_at_all():
    x = randn(4, 3).requires_grad_()
    for m in (0, 5):
        out = ops.concept_attention(x, torch.zeros(m, 3).double())
        assert out.shape == (4, 3) and not out.any()
        assert not torch.autograd.grad(out.sum(), x)[0].any()


def test_a_row_of_zeros_has_finite_gradients():
    x = randn(5, 3)
    x[2] = 0
    x.requires_grad_()
    out = ops.concept_attention(x, ops.hidden_concepts(x))
    assert torch.autograd.grad(out.square().sum(), x)[0].isfinite().all()


def test_no_stock():
    x = torch.empty(0, 4, requires_grad=True)
    for offsets in (None, torch.zeros(3, dtype=torch.int64)):
        concepts = ops.hidden_concepts(x, offsets)
        out = ops.concept_attention(x, concepts, offsets, offsets)
        assert out.shape == (0, 4)
        assert torch.autograd.grad(out.sum(), x)[0].shape == (0, 4)


def test_backward_of_hidden_concepts_refuses_a_choice_that_leaves_the_day():
    x, days = torch.randn(9, 4), torch.tensor([0, 4, 9])
    kernels = torch.ops.alphakernels
    _, value, choice = kernels.hidden_concepts(x, days)
    kernels.hidden_concepts_backward(x, x, days, value, choice)
    for place, row in ((3, 4), (8, 9), (8, 3), (0, -2)):
        bad = choice.clone()
        bad[place] = row
        with pytest.raises(RuntimeError, match="choice must hold rows of the same day, or -1"):
            kernels.hidden_concepts_backward(x, x, days, value, bad)
