"""What attention over the complete graph must do whatever the algorithm: sizes, ties, extremes, symmetries, days."""

from __future__ import annotations

import pytest
import torch

import alphakernels as ak
from alphakernels import ops
from alphakernels.ops.complete_graph_attention import by_sorting, reference
from alphakernels.testing import Tolerance, assert_close, assert_no_worse_than_eager

EXACT = Tolerance(1e-12, 1e-12, 1e-13)


def scores(n, hidden=13, seed=0, spread=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    s, t = (spread * torch.randn(n, generator=generator, dtype=torch.float64) for _ in range(2))
    return tuple(x.to(dtype) for x in (s, t, torch.randn(n, hidden, generator=generator, dtype=torch.float64)))


def everything(call, s, t, h, seed=7):
    """Output and gradients by name."""
    leaves = [x.detach().clone().requires_grad_() for x in (s, t, h)]
    out = call(*leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(out.dtype)
    return dict(zip(("out", "ds", "dt", "dh"), (out.detach(), *torch.autograd.grad(out, leaves, grad)), strict=True))


def direct(slope=0.01, offsets=None):
    return lambda s, t, h: reference.complete_graph_attention(s, t, h, offsets, slope, True)[0]


def check(s, t, h, slope=0.01, offsets=None, exact=EXACT):
    """float64 to rounding, float32 no further from it than the direct softmax in float32."""
    expected = everything(direct(slope, offsets), s, t, h)
    ours = lambda s, t, h: ops.complete_graph_attention(s, t, h, slope, offsets)  # noqa: E731
    for name, value in everything(ours, s, t, h).items():
        assert_close(name, value, expected[name], tolerance=exact)
    single = [x.float() for x in (s, t, h)]
    expected = everything(direct(slope, offsets), *(x.double() for x in single))
    eager = everything(direct(slope, offsets), *single)
    for name, value in everything(ours, *single).items():
        if value.numel() >= 100:
            assert_no_worse_than_eager(name, value, eager[name], expected[name])
        else:
            assert_close(name, value, expected[name].float(), tolerance=Tolerance(1e-5, 2e-6, 3e-6))


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("n", [1, 2, 3, 20, 64, 65, 300, 1000])
def test_sizes(n, spread):
    check(*scores(n, spread=spread, seed=n))


def test_ties_on_the_kink_take_the_negative_slope():
    """Whole numbers: s_i + t_j is exactly zero for a fifth of the pairs, and most scores have equals."""
    generator = torch.Generator().manual_seed(0)
    s, t = (torch.randint(-2, 3, (150,), generator=generator).double() for _ in range(2))
    assert ((s[:, None] + t) == 0).double().mean() > 0.1
    for slope in (0.0, 0.01, 0.5, 1.0):
        check(s, t, scores(150)[2], slope)


@pytest.mark.parametrize("value", [-3.0, 0.0, 2.0])
def test_equal_scores_give_the_mean(value):
    _, _, h = scores(130)
    s = torch.full((130,), value, dtype=torch.float64)
    out = ops.complete_graph_attention(s, s, h)
    assert_close("out", out, h.mean(0).expand(130, -1))
    check(s, s, h)


@pytest.mark.parametrize("spread", [1e2, 1e4])
def test_huge_scores(spread):
    """The largest score takes all."""
    s, t, h = scores(200, spread=spread)
    for dtype in (torch.float32, torch.float64):
        given = [x.to(dtype) for x in (s, t, h)]
        expected = everything(direct(), *(x.double() for x in given))
        got = everything(ops.complete_graph_attention, *given)
        assert all(x.isfinite().all() for x in got.values())
        # exp of a score of 1e4 carries the rounding of the score itself, 5e-4 in float32.
        loose = Tolerance(0, spread * (1e-6 if dtype == torch.float32 else 1e-14), 1e-6 if dtype == torch.float32 else 1e-12)
        for name in got:
            assert_close(name, got[name], expected[name], tolerance=loose)


def test_one_dominating_neighbour():
    s, t, h = scores(90)
    t[17] = 60.0
    out = ops.complete_graph_attention(s.abs(), t, h)
    assert_close("out", out, h[17].expand(90, -1), tolerance=Tolerance(0, 1e-12))
    check(s.abs(), t, h)


def test_permuting_the_stocks_permutes_the_output():
    s, t, h = scores(333, dtype=torch.float64)
    order = torch.randperm(333, generator=torch.Generator().manual_seed(3))
    before = everything(ops.complete_graph_attention, s, t, h)
    leaves = [x[order].requires_grad_() for x in (s, t, h)]
    out = ops.complete_graph_attention(*leaves)
    grad = torch.randn(333, 13, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    for name, value in zip(before, (out, *torch.autograd.grad(out, leaves, grad[order])), strict=True):
        assert_close(name, value, before[name][order], tolerance=Tolerance(1e-11, 1e-12))


def test_a_shift_from_s_to_t_changes_nothing():
    s, t, h = scores(100)
    assert_close("out", ops.complete_graph_attention(s + 0.75, t - 0.75, h), ops.complete_graph_attention(s, t, h))


@pytest.mark.parametrize("sizes", [(5,), (1, 1, 1), (0, 70, 0, 3), (64, 64, 2), (3, 200, 1, 65)])
def test_days_together_are_days_apart(sizes):
    """Bitwise, gradients included: no day feels another."""
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    n = int(offsets[-1])
    for dtype in (torch.float32, torch.float64):
        given = scores(n, dtype=dtype)
        together = everything(lambda s, t, h: ops.complete_graph_attention(s, t, h, offsets=offsets), *given)
        apart = everything(
            lambda s, t, h: torch.cat(
                [ops.complete_graph_attention(s[a:b], t[a:b], h[a:b]) for a, b in zip(offsets, offsets[1:], strict=False)]
            ),
            *given,
        )
        for name in together:
            assert torch.equal(together[name], apart[name]), name
    check(*scores(n), offsets=offsets)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_no_stock(backend):
    with ak.use_backend(backend):
        leaves = [torch.empty(0, requires_grad=True), torch.empty(0), torch.empty(0, 4)]
        for offsets in (None, torch.zeros(1, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)):
            out = ops.complete_graph_attention(*leaves, offsets=offsets)
            assert out.shape == (0, 4)
            if offsets is None or len(offsets) > 1:
                assert torch.autograd.grad(out.sum(), leaves[0], allow_unused=True)[0].shape == (0,)
        assert ops.complete_graph_attention(torch.ones(3), torch.ones(3), torch.ones(3, 0)).shape == (3, 0)


@pytest.mark.parametrize("where", ["s", "t", "h"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite(where, value):
    """It goes where the direct softmax lets it go, and never into another day."""
    if where == "h" and value is not torch.nan:
        pytest.skip("the direct product of a weight that underflowed to zero and infinity is NaN; the sums have no such zero")
    s, t, h = scores(140)
    {"s": s, "t": t, "h": h[:, 3]}[where][65] = value
    offsets = torch.tensor([0, 60, 140])
    expected = everything(direct(offsets=offsets), s, t, h)
    got = everything(lambda s, t, h: ops.complete_graph_attention(s, t, h, offsets=offsets), s, t, h)
    for name in got:
        assert not got[name][:60].isnan().any()
        assert_close(name, got[name], expected[name])


def test_rows_of_the_attention():
    s, t, h = scores(50)
    offsets = torch.tensor([0, 20, 50])
    rows = torch.tensor([0, 19, 20, 44])
    for days in (None, offsets):
        weights = ops.attention_rows(s, t, rows, offsets=days)
        assert weights.shape == (4, 50)
        assert_close("sums", weights.sum(1), torch.ones(4).double())
        assert_close("out", weights @ h, ops.complete_graph_attention(s, t, h, offsets=days)[rows])
    assert not weights[:2, 20:].any() and not weights[2:, :20].any()
    assert (weights[0, :20] > 0).all()


def test_rows_that_are_no_rows():
    s = torch.zeros(3)
    with pytest.raises(TypeError, match=r"attention_rows: rows must be an int64 tensor \[R\], got torch.float32"):
        ops.attention_rows(s, s, torch.zeros(1))
    with pytest.raises(IndexError):
        ops.attention_rows(s, s, torch.tensor([3]))


def test_without_gradients_nothing_is_kept():
    s, t, h = scores(30)
    with torch.no_grad():
        _, slope, _, _ = torch.ops.alphakernels.complete_graph_attention(s, t, h, None, 0.01, False)
    assert slope.shape == (0, 13)
    out = torch.ops.alphakernels.complete_graph_attention(s.requires_grad_(), t, h, None, 0.01, False)[0]
    with pytest.raises(RuntimeError, match="keep=False kept nothing"):
        out.sum().backward()


@pytest.mark.parametrize("n", [300, 1000, 4000])
def test_closer_to_float64_than_the_direct_softmax(n):
    """The sums are shorter and no exponent is positive: in root mean square the output's error is smaller."""
    s, t, h = (x.float() for x in scores(n, 32, seed=n))
    exact = direct()(s.double(), t.double(), h.double())
    ours, eager = ((f(s, t, h).double() - exact).square().mean().sqrt() for f in (ops.complete_graph_attention, direct()))
    assert ours <= eager


@pytest.mark.parametrize("spread", [1.0, 30.0])
@pytest.mark.parametrize("sizes", [(), (1, 0, 63, 64, 22)])
def test_the_same_by_pytorchs_own_sorts(sizes, spread):
    """What runs where there is no compiled kernel: a GPU, another dtype."""
    offsets = torch.tensor([0, *sizes]).cumsum(0) if sizes else None
    generator = torch.Generator().manual_seed(0)
    whole = [torch.randint(-3, 4, (150,), generator=generator).double() for _ in range(2)]  # ties, and sums of zero
    for s, t, h in (scores(150, spread=spread), (*whole, scores(150)[2])):
        expected = everything(direct(0.01, offsets), s, t, h)
        sorts = everything(lambda s, t, h: by_sorting.complete_graph_attention(s, t, h, offsets, 0.01, True)[0], s, t, h)
        for name, value in sorts.items():
            assert_close(name, value, expected[name], tolerance=Tolerance(1e-11, 1e-11, 1e-12))


def test_half_precision_on_the_cpu():
    s, t, h = scores(40, dtype=torch.bfloat16)
    out = ops.complete_graph_attention(s, t, h)
    assert out.dtype == torch.bfloat16
    assert_close("out", out, direct()(s.double(), t.double(), h.double()), tolerance=Tolerance(8e-3, 4e-3))


def test_backward_refuses_an_order_that_leaves_the_day():
    s, t, h, days = torch.randn(9), torch.randn(9), torch.randn(9, 4), torch.tensor([0, 4, 9])
    kernels = torch.ops.alphakernels
    out, slope, scale, order = kernels.complete_graph_attention(s, t, h, days, 0.01, True)
    kernels.complete_graph_attention_backward(h, s, t, h, days, 0.01, out, slope, scale, order)
    for half, place, row in ((0, 3, 4), (1, 8, 9), (1, 8, 3), (0, 0, -1)):
        bad = order.clone()
        bad[half, place] = row
        with pytest.raises(RuntimeError, match="order must hold rows of the same day"):
            kernels.complete_graph_attention_backward(h, s, t, h, days, 0.01, out, slope, scale, bad)
