"""What makes sparsemax sparsemax: the projection onto the simplex, and the numbers of entmax and pytorch-tabnet."""

from __future__ import annotations

import math
import os

import pytest
import torch

import alphakernels as ak
from alphakernels import ops
from alphakernels.ops import _library
from alphakernels.testing import Tolerance, assert_close

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
INF, NAN = math.inf, math.nan
LONG = [1024, 1031, 4095, 4096, 4111, 9001]  # a long row is taken in blocks, and one of thousands goes backward by its support


@pytest.fixture(params=["cpp", "reference"], autouse=True)
def backend(request):
    if request.param == "cpp" and _library.compiled().problem:
        pytest.skip(_library.compiled().problem)
    with ak.use_backend(request.param):
        yield request.param


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@DTYPES
@pytest.mark.parametrize("spread", [1e-6, 0.1, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("columns", [1, 2, 7, 8, 9, 33, 158, 1000, *LONG])
def test_a_point_of_the_simplex(columns, spread, dtype):
    p = ops.sparsemax(spread * randn(67, columns, dtype=dtype))
    assert (p >= 0).all()
    assert ((p > 0).sum(-1) >= 1).all()
    assert_close("row sums", p.double().sum(-1), torch.ones(67).double(), dtype)


@DTYPES
def test_it_is_the_nearest_point(dtype):
    """The projection p of z is the point with (z - p) . (q - p) <= 0 for every q of the simplex, its corners enough."""
    z = randn(301, 23, dtype=dtype)
    p = ops.sparsemax(z)
    away = (z - p).double()
    gap = away.amax(-1) - (away * p).sum(-1)  # the best corner's inner product
    assert gap.max() < 20 * torch.finfo(dtype).eps * z.abs().max()


@DTYPES
@pytest.mark.parametrize("spread", [0.01, 2])
@pytest.mark.parametrize("columns", [158, *LONG])
def test_equal_to_entmax_and_pytorch_tabnet(columns, spread, dtype):
    from entmax import sparsemax as entmax_sparsemax
    from pytorch_tabnet.sparsemax import sparsemax as tabnet_sparsemax

    rows = 129 if columns < 1000 else 7
    x = spread * randn(rows, columns, seed=1, dtype=dtype)
    grad = randn(rows, columns, seed=2, dtype=dtype)
    results = []
    for function in (ops.sparsemax, entmax_sparsemax, lambda x: tabnet_sparsemax(x, -1)):
        leaf = x.clone().requires_grad_()  # pytorch_tabnet writes into its input
        p = function(leaf + 0)
        results.append((p.detach(), *torch.autograd.grad(p, leaf, grad)))
    for (p, dx), peer in zip([results[0]] * 2, ("entmax", "pytorch_tabnet"), strict=True):
        theirs = results[1 if peer == "entmax" else 2]
        assert_close(f"{peer} p", p, theirs[0])
        assert_close(f"{peer} dx", dx, theirs[1])


def test_shift_changes_nothing():
    x = randn(40, 31, seed=3).double()
    assert_close("shifted", ops.sparsemax(x + 17.25), ops.sparsemax(x), torch.float32)


def test_permutation_of_columns_permutes_the_result():
    x, order = randn(40, 31, seed=4), torch.randperm(31, generator=torch.Generator().manual_seed(4))
    assert_close("permuted", ops.sparsemax(x[:, order]), ops.sparsemax(x)[:, order])


@pytest.mark.parametrize("columns", [37, 1031])
def test_rows_do_not_depend_on_their_neighbours(columns):
    x = randn(23, columns, seed=5)
    alone = torch.cat([ops.sparsemax(row[None]) for row in x])
    assert torch.equal(ops.sparsemax(x), alone)


@DTYPES
@pytest.mark.parametrize("columns", [1, 3, 8, 31, 158, 1031, 4096])
@pytest.mark.parametrize("value", [0.0, 1e6, -1e6, 1e-40, 3e38])
def test_equal_entries_share_equally(columns, value, dtype):
    p = ops.sparsemax(torch.full((5, columns), value, dtype=dtype))
    assert_close("p", p, torch.full((5, columns), 1 / columns, dtype=dtype))


@DTYPES
def test_extremes(dtype):
    big = torch.finfo(dtype).max
    x = torch.tensor([[1e6, -1e6, 0, 1e6 - 0.5], [big, -big, 0, 1], [-big, -big, -big, -big / 2]], dtype=dtype)
    expected = torch.tensor([[0.75, 0, 0, 0.25], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=dtype)
    assert torch.equal(ops.sparsemax(x), expected)


def test_denormals():
    tiny = torch.tensor([[1e-45, 0.0, 3e-42, -1e-45]])
    assert_close("p", ops.sparsemax(tiny), torch.full((1, 4), 0.25))


@DTYPES
@pytest.mark.parametrize("columns", [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_rows_without_a_meaning_are_nan(bad, columns, dtype):
    """As softmax: a NaN, a +inf, or -inf throughout; in every place of a register and of its tail, beside rows left
    alone.
    """
    good = randn(1, columns, seed=6, dtype=dtype)
    rows = []
    for place in range(columns):
        row = torch.full((1, columns), -INF, dtype=dtype) if bad == -INF else good.clone()
        row[0, place] = bad
        rows += [row, good]
    x = torch.cat(rows).requires_grad_()
    p = ops.sparsemax(x)
    assert p[::2].isnan().all()
    assert torch.equal(p[1::2], ops.sparsemax(good).expand(columns, -1))
    (dx,) = torch.autograd.grad(p, x, randn(*p.shape, seed=7, dtype=dtype))
    assert dx[::2].isnan().all()
    assert not dx[1::2].isnan().any()


@DTYPES
@pytest.mark.parametrize("columns", LONG)
@pytest.mark.parametrize("bad", [NAN, INF])
def test_long_rows_without_a_meaning_are_nan(bad, columns, dtype):
    """The bad value among the first, in the middle, in the last whole register and in what is left beyond it."""
    places = [0, 17, columns // 2, columns - 17, columns - 1]
    x = randn(2 * len(places), columns, seed=6, dtype=dtype)
    for i, place in enumerate(places):
        x[2 * i, place] = bad
    good = ops.sparsemax(x[1::2])
    x.requires_grad_()
    p = ops.sparsemax(x)
    assert p[::2].isnan().all()
    assert torch.equal(p[1::2], good)
    (dx,) = torch.autograd.grad(p, x, randn(*p.shape, seed=7, dtype=dtype))
    assert dx[::2].isnan().all()
    assert not dx[1::2].isnan().any()
    assert ops.sparsemax(torch.full((1, columns), -INF, dtype=dtype)).isnan().all()


@DTYPES
@pytest.mark.parametrize("columns", [2, 7, 9, 33, 1031])
def test_rows_of_nothing_but_nan_or_of_two_infinities(columns, dtype):
    x = torch.full((3, columns), NAN, dtype=dtype)
    x[1] = INF
    x[2, 0], x[2, 1:] = INF, -INF
    assert ops.sparsemax(x).isnan().all()


@DTYPES
@pytest.mark.parametrize("columns", [33, 1031])
def test_single_minus_infinities_get_nothing(columns, dtype):
    x = randn(9, columns, seed=8, dtype=dtype)
    hidden = torch.zeros(columns, dtype=torch.bool)
    hidden[[0, 5, columns - 1]] = True
    p = ops.sparsemax(x.masked_fill(hidden, -INF))
    assert (p[:, hidden] == 0).all()
    assert_close("the others", p[:, ~hidden], ops.sparsemax(x[:, ~hidden]))


@DTYPES
def test_gradient_at_a_tie(dtype):
    """An entry that equals the threshold is outside the support: p = [1, 0], and nothing moves it."""
    x = torch.tensor([[1.0, 0.0], [2.0, 2.0]], dtype=dtype, requires_grad=True)
    p = ops.sparsemax(x)
    (dx,) = torch.autograd.grad(p, x, torch.tensor([[3.0, 5.0], [3.0, 5.0]], dtype=dtype))
    assert p.tolist() == [[1, 0], [0.5, 0.5]]
    assert dx.tolist() == [[0, 0], [-1, 1]]


def test_gradient_rows_sum_to_zero_and_stay_in_the_support():
    x = randn(77, 41, seed=9).requires_grad_()
    p = ops.sparsemax(x)
    (dx,) = torch.autograd.grad(p, x, randn(77, 41, seed=10))
    assert (dx[p == 0] == 0).all()
    assert dx.sum(-1).abs().max() < 1e-5


@pytest.mark.parametrize("dim", range(-4, 4))
def test_every_dim(dim):
    x = randn(3, 4, 5, 6, seed=11).requires_grad_()
    p = ops.sparsemax(x, dim)
    assert_close("sums", p.sum(dim), torch.ones_like(p.sum(dim)))
    assert torch.equal(p, ops.sparsemax(x.transpose(dim, -1).contiguous()).transpose(dim, -1))
    (dx,) = torch.autograd.grad(p, x, randn(*p.shape, seed=12))
    assert_close("gradient sums", dx.sum(dim), torch.zeros_like(dx.sum(dim)), tolerance=Tolerance(0, 0, 1e-5))


def test_zero_dimensional():
    x = torch.tensor(3.0, requires_grad=True)
    p = ops.sparsemax(x)
    assert p.shape == () and p.item() == 1
    assert torch.autograd.grad(p, x)[0].item() == 0


@pytest.mark.parametrize("scale", [1e-7, 1.0])
def test_a_hundred_thousand_columns(scale):
    x = scale * randn(3, 100_000, seed=13)
    exact = ops.sparsemax(x.double())
    p = ops.sparsemax(x)
    assert_close("p", p, exact, tolerance=Tolerance(1e-4, 1e-5))  # entries near 1e-5 are what is left of 1 - tau
    assert_close("sums", p.double().sum(-1), torch.ones(3).double(), tolerance=Tolerance(1e-4, 0))


@pytest.mark.parametrize("columns", [200, 2000])
def test_a_row_that_takes_newton_many_steps(columns):
    """Each entry a part of the one before: the support shrinks slowly."""
    x = torch.logspace(0, -30, columns, dtype=torch.float64)[None] * 5
    from entmax import sparsemax as entmax_sparsemax

    assert_close("p", ops.sparsemax(x), entmax_sparsemax(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_the_cpu_is_the_references(dtype, backend):
    x = randn(5, 9, seed=14).to(dtype)
    if backend == "cpp":
        with pytest.raises(
            RuntimeError, match="sparsemax: the cpp kernel was asked for and cannot run: .* takes float32, float64"
        ):
            ops.sparsemax(x)
    else:
        p = ops.sparsemax(x)
        assert p.dtype == dtype
        assert_close("sums", p.float().sum(-1), torch.ones(5), dtype)


def free_bytes():
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(free_bytes() < 32e9, reason="needs 32 GB of free memory")
def test_offsets_past_2_to_the_31(backend):
    if backend == "reference":
        pytest.skip("the sort takes minutes")
    columns = 1024
    rows = 2**31 // columns + 3
    x = torch.zeros(rows, columns, dtype=torch.float32)
    x[-1, -1] = 0.5
    p = ops.sparsemax(x)
    assert_close("last row", p[-1:], ops.sparsemax(x[-1:].clone()))
    assert_close("row before", p[-2:-1], torch.full((1, columns), 1 / columns))
