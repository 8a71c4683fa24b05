"""The Triton kernels of GATs' and HIST's ops where the contract does not reach: both ways to the sums, extremes, days, half precision."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from alphakernels import ops
from alphakernels.ops import _backend
from alphakernels.ops._library import OPS
from alphakernels.ops.complete_graph_attention import reference
from alphakernels.ops.concept_attention import reference as concept_reference
from alphakernels.ops.hidden_concepts import reference as hidden_reference
from alphakernels.ops.predefined_concepts import reference as predefined_reference
from alphakernels.testing import TOLERANCES, Tolerance, assert_close

SINGLE = Tolerance(1e-5, 2e-6, 1e-6)


@pytest.fixture(params=["pairs", "sorting"])
def way(request, monkeypatch):
    """Both ways to the sums, whatever the size."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    from alphakernels.ops.complete_graph_attention import triton as kernels

    monkeypatch.setattr(kernels, "ALL_PAIRS", 0 if request.param == "sorting" else 1 << 40)


def offsets_of(sizes):
    return torch.tensor([0, *sizes]).cumsum(0) if sizes else None


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def everything(function, tensors, seed=7):
    """Output and gradients."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    out = function(*leaves)
    grad = randn(*out.shape, seed=seed).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def check(call, plain, tensors, device, tolerance=SINGLE):
    got = everything(call, [t.to(device) for t in tensors])
    expected = everything(plain, [t.double() for t in tensors])
    for i, (a, e) in enumerate(zip(got, expected, strict=True)):
        assert_close(f"result {i}", a, e, tolerance=tolerance)
    return got


def attention(sizes=(), slope=0.01):
    def call(s, t, h):
        offsets = offsets_of(sizes)
        return ops.complete_graph_attention(s, t, h, slope, None if offsets is None else offsets.to(h.device))

    return call, lambda s, t, h: reference.complete_graph_attention(s, t, h, offsets_of(sizes), slope, True)[0]


def whole(n, low, high, seed):
    return torch.randint(low, high, (n,), generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_ties_on_the_kink(triton_device, way, slope):
    check(*attention(slope=slope), (whole(90, -2, 3, 0), whole(90, -2, 3, 1), randn(90, 3)), triton_device)


def test_equal_scores_give_the_mean(triton_device, way):
    h, s = randn(70, 5), torch.full((70,), -1.5)
    got = check(*attention(), (s, s, h), triton_device)
    assert_close("mean", got[0], h.mean(0).expand(70, -1))


@pytest.mark.parametrize("spread", [1e2, 1e4])
def test_huge_scores(triton_device, way, spread):
    loose = Tolerance(0, spread * 1e-6, 2e-6)  # exp of a score of 1e4 carries the rounding of the score, 5e-4 in float32
    got = check(*attention(), (spread * randn(100), spread * randn(100, seed=1), randn(100, 4)), triton_device, loose)
    assert all(x.isfinite().all() for x in got)


def test_one_dominating_neighbour(triton_device, way):
    s, t, h = randn(80).abs(), randn(80, seed=1), randn(80, 4)
    t[17] = 60.0
    # t[17]'s gradient is zero as a sum of differences between equal numbers: as exact as those are, g . h[17] of every stock.
    terms = (randn(80, 4, seed=7).abs() @ h[17].abs()).sum().item()
    rounding = SINGLE._replace(absolute=torch.finfo(torch.float32).eps / 2 * terms)
    got = check(*attention(), (s, t, h), triton_device, rounding)
    assert_close("out", got[0], h[17].expand(80, -1))


def test_rows_wider_than_a_program_takes_at_once(triton_device, way):
    check(*attention(), (randn(40), randn(40, seed=1), randn(40, 70)), triton_device)


@pytest.mark.parametrize("sizes", [(5,), (1, 1, 1), (0, 70, 0, 3), (3, 40, 1, 65)], ids=str)
def test_days_together_are_days_apart(triton_device, way, sizes):
    """Bitwise, gradients included: no day feels another."""
    n = sum(sizes)
    tensors = (randn(n), randn(n, seed=1), randn(n, 6, seed=2))
    together = check(*attention(sizes), tensors, triton_device)
    grad, begin = randn(n, 6, seed=7), 0
    for size in sizes:
        day = slice(begin, begin + size)
        leaves = [t[day].to(triton_device).requires_grad_() for t in tensors]
        out = ops.complete_graph_attention(*leaves)
        for a, b in zip(together, (out, *torch.autograd.grad(out, leaves, grad[day].to(out))), strict=True):
            assert torch.equal(a[day], b)
        begin += size


def test_permuting_the_stocks_permutes_the_output(triton_device, way):
    order = torch.randperm(100, generator=torch.Generator().manual_seed(3))
    s, t, h = randn(100), randn(100, seed=1), randn(100, 4)
    before, after = (ops.complete_graph_attention(*(x[i].to(triton_device) for x in (s, t, h))) for i in (torch.arange(100), order))
    assert_close("out", after, before[order])


@pytest.mark.parametrize("where", ["s", "t", "h"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_what_is_not_finite(triton_device, way, where, value):
    """It goes where the direct softmax lets it go, and never into another day."""
    if where == "h" and value is not torch.nan:
        pytest.skip("zero weights and infinity: NaN or not by the order of the products")
    s, t, h = randn(90), randn(90, seed=1), randn(90, 4, seed=2)
    {"s": s, "t": t, "h": h[:, 3]}[where][65] = value
    got = check(*attention((40, 50)), (s, t, h), triton_device)
    assert all(x[:40].isfinite().all() for x in got)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(triton_device, way, dtype):
    tensors = [x.to(dtype) for x in (randn(70), randn(70, seed=1), randn(70, 8))]
    got = check(*attention((30, 40)), tensors, triton_device, TOLERANCES[dtype])
    assert {x.dtype for x in got} == {dtype}


def test_no_stock(triton_device, way):
    for offsets in (None, torch.zeros(1, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)):
        there = None if offsets is None else offsets.to(triton_device)
        leaves = [torch.empty(0, device=triton_device, requires_grad=True) for _ in range(2)]
        h = torch.empty(0, 4, device=triton_device, requires_grad=True)
        out = ops.complete_graph_attention(*leaves, h, 0.01, there)
        assert out.shape == (0, 4)
        assert [g.shape for g in torch.autograd.grad(out.sum(), (*leaves, h))] == [(0,), (0,), (0, 4)]
        x = torch.empty(0, 4, device=triton_device, requires_grad=True)
        out = ops.concept_attention(x, ops.hidden_concepts(x, there), there, there)
        assert torch.autograd.grad(out.sum(), x)[0].shape == (0, 4)
    assert ops.complete_graph_attention(*(torch.ones(3, *tail, device=triton_device) for tail in ((), (), (0,)))).shape == (3, 0)


def concepts(sizes=(), theirs=()):
    def call(x, c):
        days = [None if not s else offsets_of(s).to(x.device) for s in (sizes, theirs)]
        return ops.concept_attention(x, c, *days)

    return call, lambda x, c: concept_reference.concept_attention(x, c, offsets_of(sizes), offsets_of(theirs))[0]


def hidden(sizes=()):
    def call(x):
        return ops.hidden_concepts(x, None if not sizes else offsets_of(sizes).to(x.device))

    return call, lambda x: hidden_reference.hidden_concepts(x, offsets_of(sizes))[0]


def predefined(member, sizes=(), rows=None):
    def call(x):
        offsets = None if not sizes else offsets_of(sizes).to(x.device)
        return ops.predefined_concepts(x, member.to(x), offsets, None if rows is None else rows.to(x.device))

    return call, lambda x: predefined_reference.predefined_concepts(x, member.to(x), offsets_of(sizes), rows)[0]


def test_predefined_concepts(triton_device):
    """Days of few and of many, one without stocks; chosen rows; columns and concepts of more than a tile; a concept without stock."""
    member = (torch.rand(45, 70, generator=torch.Generator().manual_seed(3)) < 0.2) * randn(45, 70, seed=4).abs()
    member[:, 9] = 0
    got = check(*predefined(member, (1, 40, 0, 4)), (randn(45, 70),), triton_device)
    assert not got[0][9].any() and not got[0][140:210].any()
    rows = torch.randint(45, (60,), generator=torch.Generator().manual_seed(5))
    check(*predefined(member, (), rows), (randn(60, 20),), triton_device)
    check(*predefined(member, (33, 27), rows), (randn(60, 20),), triton_device)


def test_predefined_concepts_of_nobody_and_none(triton_device):
    x = torch.empty(0, 4, device=triton_device, requires_grad=True)
    out = ops.predefined_concepts(x, torch.empty(0, 3, device=triton_device))
    assert out.shape == (3, 4) and not out.any()
    assert torch.autograd.grad(out.sum(), x)[0].shape == (0, 4)
    x = randn(5, 4).to(triton_device).requires_grad_()
    out = ops.predefined_concepts(x, torch.empty(5, 0, device=triton_device))
    assert out.shape == (0, 4) and not torch.autograd.grad(out.sum(), x)[0].any()


def test_silent_concepts(triton_device):
    """Rows of zeros, rows that cancel, and none that is not: no part, no gradient."""
    c = randn(7, 70)
    c[2] = 0
    c[4] = torch.cat([torch.ones(35), -torch.ones(35)])
    got = check(*concepts(), (randn(40, 70, seed=1), c), triton_device)
    assert not got[2][[2, 4]].any()
    for m in (0, 3):
        x = randn(5, 6).to(triton_device).requires_grad_()
        out = ops.concept_attention(x, torch.zeros(m, 6, device=triton_device))
        assert not out.any() and not torch.autograd.grad(out.sum(), x)[0].any()


def test_a_day_without_stocks_and_one_without_concepts(triton_device):
    check(*concepts((0, 20, 13), (4, 35, 0)), (randn(33, 5), randn(39, 5, seed=1)), triton_device)


def test_a_broken_day_stays_alone(triton_device):
    x, c = randn(60, 6), randn(20, 6, seed=1)
    x[45, 2] = torch.nan
    got = check(*concepts((40, 20), (10, 10)), (x, c), triton_device)
    assert got[0][:40].isfinite().all() and got[2][:10].isfinite().all()
    got = check(*hidden((40, 20)), (x,), triton_device)
    assert all(r[:40].isfinite().all() and r[40:].isnan().all() for r in got)


def test_hidden_concepts_of_equal_and_of_opposed_stocks(triton_device):
    equal = randn(1, 6).expand(40, 6).clone().to(triton_device)
    out = ops.hidden_concepts(equal)
    assert_close("first", out[0], 40 * equal[0])  # the others and itself
    assert_close("second", out[1], 2 * equal[0])
    assert not out[2:].any()
    opposed = torch.tensor([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]], device=triton_device)
    assert not ops.hidden_concepts(opposed).any()
    assert not ops.hidden_concepts(randn(1, 4).to(triton_device)).any()


def test_hidden_concepts_wider_than_a_program_takes_at_once(triton_device):
    x = randn(45, 70) + 0.3
    x[7] = 0
    check(*hidden(), (x,), triton_device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_concepts_in_half_precision(triton_device, dtype):
    x, c = (randn(*shape, seed=i).to(dtype) for i, shape in enumerate(((30, 8), (11, 8))))
    check(*concepts(), (x, c), triton_device, TOLERANCES[dtype])
    check(*hidden(), (x + 1,), triton_device, TOLERANCES[dtype])
    member = (randn(30, 11, seed=2) > 0.5).to(dtype)
    check(*predefined(member, (12, 18)), (x,), triton_device, TOLERANCES[dtype])


@pytest.mark.parametrize("name", ["complete_graph_attention", "concept_attention", "hidden_concepts", "predefined_concepts"])
def test_float64_on_a_gpu_is_pytorchs_and_says_why(name):
    reason = _backend.reason_against(OPS[name], "triton", "cuda", torch.float64)
    if importlib.util.find_spec("triton") is not None:
        assert reason == "the Triton kernel takes bfloat16, float16, float32, got float64"
    chosen = _backend._choose(OPS[name], "cuda", torch.float64, "auto")
    assert chosen.kernel == "reference" and chosen.reasons["triton"] == reason
