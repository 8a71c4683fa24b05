"""The fused GLU block against the chain of torch calls it replaces."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import batch_norm, glu

import alphakernels as ak
from alphakernels import ops
from alphakernels.ops.ghost_batch_norm.reference import chunk_sizes
from alphakernels.testing import Tolerance, assert_close


@pytest.fixture(params=["auto", "reference"], autouse=True)
def backend(request):
    with ak.use_backend(request.param):
        yield request.param


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("rows, hidden, vbs", [(50, 7, 16), (33, 16, 32), (13, 1, 3)])
def test_equals_the_chain(rows, hidden, vbs, residual, training):
    u, x = randn(rows, 2 * hidden).requires_grad_(), randn(rows, hidden, seed=1).requires_grad_()
    weight, bias = randn(2 * hidden, seed=2).requires_grad_(), randn(2 * hidden, seed=3).requires_grad_()
    grad = randn(rows, hidden, seed=4)
    scale = math.sqrt(0.5)
    leaves = (u, weight, bias) + ((x,) if residual else ())
    results = []
    for fused in (True, False):
        mean, var = randn(2 * hidden, seed=5), randn(2 * hidden, seed=6).abs()
        if fused:
            options = dict(virtual_batch_size=vbs, training=training, scale=scale, residual=x if residual else None)
            out = ops.glu_block(u, weight, bias, mean, var, **options)
        else:
            pieces = u.split(chunk_sizes(rows, vbs)) if training else [u]
            v = torch.cat([batch_norm(p, mean, var, weight, bias, training, 0.01) for p in pieces])
            out = (x * residual + glu(v)) * scale
        results.append((out, mean, var, *torch.autograd.grad(out, leaves, grad)))
    names = ("out", "running_mean", "running_var", "du", "dweight", "dbias", "dresidual")[: len(results[0])]
    for name, a, e in zip(names, *results, strict=True):
        assert_close(name, a, e, tolerance=Tolerance(1e-11, 1e-11))  # two float64 chains, neither the exact one


def test_without_a_norm_it_is_torchs_glu():
    u = randn(9, 8)
    assert_close("out", ops.glu_block(u, training=False), glu(u))


@pytest.mark.parametrize("value", [-200.0, 200.0, -1e30, 1e30])
def test_gates_that_are_wide_open_or_shut(value):
    """The kernels' sigmoid ends at the smallest normal float32 instead of running out to zero."""
    u = torch.full((5, 34), value, requires_grad=True)
    out = ops.glu_block(u, training=False)
    (du,) = torch.autograd.grad(out.sum(), u)
    smallest = Tolerance(0, 0, 2e-38 * abs(value))
    assert_close("out", out, torch.full((5, 17), value if value > 0 else 0.0), tolerance=smallest)
    assert_close("dvalue", du[:, :17], torch.full((5, 17), float(value > 0)), tolerance=Tolerance(0, 0, 2e-38))
    assert_close("dgate", du[:, 17:], torch.zeros(5, 17), tolerance=smallest)


@pytest.mark.parametrize("running", [True, False])
def test_linear_bias_in_evaluation(running):
    """With a norm and without one it equals adding the bias, gradients included."""
    u, linear_bias = randn(11, 6).requires_grad_(), randn(6, seed=1).requires_grad_()
    norm = (randn(6, seed=2), randn(6, seed=3), randn(6, seed=4), randn(6, seed=5).abs()) if running else ()
    grad = randn(11, 3, seed=6)
    results = []
    for out in (
        ops.glu_block(u, *norm, training=False, linear_bias=linear_bias),
        ops.glu_block(u + linear_bias, *norm, training=False),
    ):
        results.append((out, *torch.autograd.grad(out, (u, linear_bias), grad)))
    for name, a, e in zip(("out", "du", "dlinear_bias"), *results, strict=True):
        assert_close(name, a, e)


def test_linear_bias_in_training_moves_the_running_mean_alone():
    u, linear_bias = randn(20, 6), randn(6, seed=1).requires_grad_()
    results = []
    for shift in (linear_bias, None):
        mean, var = torch.zeros(6).double(), torch.ones(6).double()
        results.append((ops.glu_block(u, None, None, mean, var, virtual_batch_size=8, linear_bias=shift), mean, var))
    (out, mean, var), (plain, plain_mean, plain_var) = results
    assert torch.equal(out, plain) and torch.equal(var, plain_var)
    weight = 1 - 0.99**2  # of two virtual batches at momentum 0.01
    assert_close("running_mean", mean - plain_mean, weight * linear_bias)
    assert torch.equal(torch.autograd.grad(out.sum(), linear_bias)[0], torch.zeros(6).double())
