"""Ghost batch norm against torch's own batch norm, virtual batch after virtual batch."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import batch_norm

import alphakernels as ak
from alphakernels import ops
from alphakernels.ops.ghost_batch_norm.reference import chunk_sizes
from alphakernels.testing import Tolerance, assert_close


@pytest.fixture(params=["auto", "reference"], autouse=True)
def backend(request):
    with ak.use_backend(request.param):
        yield request.param


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(
    "rows, vbs, sizes",
    [
        (0, 4, [0]),
        (1, 4, [1]),
        (3, 4, [3]),
        (4, 4, [4]),
        (5, 4, [5]),
        (7, 4, [7]),
        (8, 4, [4, 4]),
        (9, 4, [5, 4]),
        (13, 3, [4, 4, 5]),  # torch.chunk leaves one row over, at which Qlib fails
        (10, 4, [5, 5]),
        (4097, 2048, [2049, 2048]),
        (25, 6, [7, 7, 7, 4]),
        (17, 4, [5, 5, 5, 2]),
        (5, 1, [1, 1, 1, 1, 1]),
    ],
)
def test_virtual_batches(rows, vbs, sizes):
    assert chunk_sizes(rows, vbs) == sizes
    assert sum(sizes) == rows


def test_virtual_batches_are_torch_chunks():
    for rows in range(1, 90):
        for vbs in range(2, 20):
            pieces = [p.shape[0] for p in torch.empty(rows, 1).chunk(max(rows // vbs, 1))]
            if pieces[-1] == 1 and len(pieces) > 1:
                pieces[-2:] = [pieces[-2] + 1]
            assert chunk_sizes(rows, vbs) == pieces, (rows, vbs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("rows", [15, 16, 17, 31, 32, 33, 100])
def test_equals_batch_norm_of_each_virtual_batch(rows, dtype):
    x = (2 * randn(rows, 21, seed=rows, dtype=dtype) + randn(21, dtype=dtype)).requires_grad_()
    weight, bias = randn(21, seed=1, dtype=dtype).requires_grad_(), randn(21, seed=2, dtype=dtype).requires_grad_()
    grad = randn(rows, 21, seed=3, dtype=dtype)
    results = []
    for ours in (True, False):
        mean, var = randn(21, seed=4, dtype=dtype), randn(21, seed=5, dtype=dtype).abs()
        if ours:
            y = ops.ghost_batch_norm(x, weight, bias, mean, var, virtual_batch_size=16, momentum=0.2, eps=1e-3)
        else:
            pieces = x.split(chunk_sizes(rows, 16))
            y = torch.cat([batch_norm(p, mean, var, weight, bias, True, 0.2, 1e-3) for p in pieces])
        results.append((y, mean, var, *torch.autograd.grad(y, (x, weight, bias), grad)))
    for name, a, e in zip(("y", "running_mean", "running_var", "dx", "dweight", "dbias"), *results, strict=True):
        assert_close(
            name, a, e, tolerance=Tolerance(1e-5, 5e-6) if dtype == torch.float32 else None
        )  # two roundings apart


def test_normalised_columns():
    x = 3 * randn(60, 7, seed=6, dtype=torch.float64) + 5
    y = ops.ghost_batch_norm(x, virtual_batch_size=20, eps=0.0)
    for piece in y.split(20):
        assert_close("mean", piece.mean(0), torch.zeros(7).double(), tolerance=Tolerance(0, 0, 1e-13))
        assert_close("deviation", piece.std(0, correction=0), torch.ones(7).double())


def test_evaluation_uses_the_running_statistics_and_leaves_them():
    x, mean, var = randn(10, 5, seed=7), randn(5, seed=8), randn(5, seed=9).abs()
    before = mean.clone(), var.clone()
    y = ops.ghost_batch_norm(x, None, None, mean, var, virtual_batch_size=3, training=False)
    assert_close("y", y, batch_norm(x, mean, var))
    assert torch.equal(mean, before[0]) and torch.equal(var, before[1])


@pytest.mark.parametrize("mean, deviation", [(1e6, 1.0), (1e4, 1e-2), (-3e5, 0.5), (1e3, 1e-1)])
def test_a_large_mean_costs_no_digits(mean, deviation):
    """Float64 is given the same float32 numbers; only the mean itself is rounded to a float32."""
    x = (mean + deviation * randn(257, 9, seed=10, dtype=torch.float64)).float()
    y = ops.ghost_batch_norm(x, virtual_batch_size=64, eps=1e-12)
    exact = ops.ghost_batch_norm(x.double(), virtual_batch_size=64, eps=1e-12)
    half_ulp_of_mean = 0.5 * torch.finfo(torch.float32).eps * abs(mean) / deviation
    assert_close("y", y, exact, tolerance=Tolerance(1e-5, 0, 2 * half_ulp_of_mean))


@pytest.mark.parametrize("vbs", [4, 50])
def test_constant_columns_become_the_bias(vbs):
    x = torch.tensor([0.1, 1e6, -3e-5, 1e30]).expand(37, 4)
    bias = randn(4, seed=11)
    y = ops.ghost_batch_norm(x.clone(), torch.ones(4), bias, virtual_batch_size=vbs)
    assert_close("y", y[:, [1]], bias[[1]].expand(37, 1))
    assert y.isfinite().all()


def test_an_outlier_stays_in_its_virtual_batch():
    x = randn(64, 5, seed=12)
    spoiled = x.clone()
    spoiled[20, 2] = 1e30
    y, other = (ops.ghost_batch_norm(t, virtual_batch_size=16) for t in (x, spoiled))
    same = torch.ones(64, 5, dtype=torch.bool)
    same[16:32, 2] = False
    assert torch.equal(y[same], other[same])


class TestLinearBias:
    """The bias of the linear layer before, which was left out of x."""

    def arguments(self, dtype=torch.float64):
        x, weight, bias, linear_bias = (
            randn(*s, seed=i, dtype=dtype) for i, s in enumerate([(50, 6), (6,), (6,), (6,)], 20)
        )
        return x, weight, bias, linear_bias, randn(6, seed=24, dtype=dtype), randn(6, seed=25, dtype=dtype).abs()

    @pytest.mark.parametrize("training", [True, False])
    def test_equals_adding_it(self, training):
        x, weight, bias, linear_bias, mean, var = self.arguments()
        results = []
        for added in (False, True):
            m, v = mean.clone(), var.clone()
            options = {} if added else {"linear_bias": linear_bias}
            y = ops.ghost_batch_norm(
                x + linear_bias if added else x, weight, bias, m, v, virtual_batch_size=16, training=training, **options
            )
            results.append((y, m, v))
        for name, a, e in zip(("y", "running_mean", "running_var"), *results, strict=True):
            assert_close(name, a, e)

    def test_its_gradient(self):
        x, weight, bias, linear_bias, mean, var = self.arguments()
        linear_bias.requires_grad_()
        grad = randn(50, 6, seed=26, dtype=torch.float64)
        y = ops.ghost_batch_norm(x, weight, bias, mean, var, virtual_batch_size=16, linear_bias=linear_bias)
        assert torch.equal(torch.autograd.grad(y, linear_bias, grad)[0], torch.zeros(6).double())
        y = ops.ghost_batch_norm(
            x, weight, bias, mean, var, virtual_batch_size=16, training=False, linear_bias=linear_bias
        )
        expected = (grad * weight * (var + 1e-5).rsqrt()).sum(0)
        assert_close("evaluation", torch.autograd.grad(y, linear_bias, grad)[0], expected)


def test_parameters_of_another_dtype_are_refused_by_the_kernel(backend):
    if backend == "reference":
        pytest.skip("torch promotes")
    with pytest.raises((TypeError, RuntimeError), match="ghost_batch_norm: weight must be .*dtype"):
        ops.ghost_batch_norm(randn(6, 4), torch.ones(4).double(), virtual_batch_size=3)


def test_only_the_inputs_that_need_gradients_get_them():
    x, weight = randn(12, 4).requires_grad_(), torch.ones(4, requires_grad=True)
    y = ops.ghost_batch_norm(x.detach(), weight, virtual_batch_size=6)
    y.sum().backward()
    assert x.grad is None and weight.grad is not None
    with torch.no_grad():
        assert not ops.ghost_batch_norm(x, weight, virtual_batch_size=6).requires_grad


@pytest.mark.parametrize("size", [0, -3])
def test_kernels_refuse_a_virtual_batch_of_none(size):
    x, one = torch.randn(4, 4), torch.randn(1, 4)
    kernels = torch.ops.alphakernels
    for call in (
        lambda: kernels.ghost_batch_norm(x, None, None, None, None, None, size, True, 0.1, 1e-5),
        lambda: kernels.ghost_batch_norm_backward(x, x, None, one, one, size, True),
        lambda: kernels.glu_block_backward(x[:, :2], x, None, None, one, one, size, True, 1.0, False),
    ):
        with pytest.raises(RuntimeError, match=f"virtual_batch_size must be at least 1, got {size}"):
            call()
