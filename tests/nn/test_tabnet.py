"""The blocks of TabNet against plain compositions of torch calls."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

import alphakernels as ak
from alphakernels import nn
from alphakernels.ops.ghost_batch_norm.reference import chunk_sizes
from alphakernels.testing import Tolerance, assert_close

LOOSE = Tolerance(1e-10, 1e-10)  # two float64 chains, neither the exact one


@pytest.fixture(params=["auto", "reference"])
def backend(request):
    with ak.use_backend(request.param):
        yield request.param


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lively(module, seed=0):
    """The module in float64, its norms with weights and statistics other than one and zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, t in module.double().state_dict().items():
        if name.endswith(("bn.weight", "running_var")):
            t.copy_(0.5 + torch.rand(t.shape, generator=generator))
        elif name.endswith(("bn.bias", "running_mean")):
            t.copy_(torch.randn(t.shape, generator=generator))
    return module


def plain_norm(gbn, x):
    """Qlib's GBN, with a last row that joins the virtual batch before it."""
    pieces = x.split(chunk_sizes(x.shape[0], gbn.vbs)) if gbn.training else [x]
    return torch.cat([gbn.bn(piece) for piece in pieces])


def plain_glu(glu, x):
    v = plain_norm(glu.bn, glu.fc(x))
    return v[:, : glu.od] * torch.sigmoid(v[:, glu.od :])


def plain_transformer(block, x):
    blocks = list(block.shared or ()) + list(block.independ)
    if block.shared or x.shape[1] != blocks[0].od:
        x, blocks = plain_glu(blocks[0], x), blocks[1:]
    for glu in blocks:
        x = (x + plain_glu(glu, x)) * math.sqrt(0.5)
    return x


def plain_attention(block, a, priors):
    from entmax import sparsemax

    return sparsemax(plain_norm(block.bn, block.fc(a)) * priors, dim=-1)


def compare(module, plain, *inputs, rtol=LOOSE):
    """Outputs, gradients of inputs and parameters, and buffers of `module` and of `plain(copy of module)`."""
    results = []
    for run, m in ((lambda m, *x: m(*x), module), (plain, copy.deepcopy(module))):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = run(m, *leaves)
        (out * randn(*out.shape, seed=99)).sum().backward()
        gradients = {n: p.grad for n, p in m.named_parameters()}
        given = {f"input {i}": x.grad for i, x in enumerate(leaves)}
        results.append({"out": out} | given | gradients | {f"buffer {n}": b for n, b in m.named_buffers()})
    for name, expected in results[1].items():
        if module.training and name.endswith("fc.bias"):  # the norm cancels it: plain torch finds rounding noise
            assert torch.equal(results[0][name], torch.zeros_like(expected))
            assert expected.abs().max() < 1e-10
        else:
            assert_close(name, results[0][name], expected, tolerance=rtol)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rows", [7, 8, 9, 13, 50])
def test_ghost_batch_norm(rows, training, backend):
    module = lively(nn.GhostBatchNorm(5, vbs=3 if rows == 13 else 8, momentum=0.1)).train(training)
    compare(module, plain_norm, randn(rows, 5))


@pytest.mark.parametrize("training", [True, False])
def test_glu(training, backend):
    compare(lively(nn.GLU(6, 4, vbs=10)).train(training), plain_glu, randn(33, 6))


def test_glu_with_a_residual(backend):
    glu, x = lively(nn.GLU(4, 4, vbs=10)), randn(33, 4)
    expected = (x + plain_glu(copy.deepcopy(glu), x)) * 0.5
    assert_close("out", glu(x, residual=True, scale=0.5), expected, tolerance=LOOSE)


def test_glus_share_a_linear_layer(backend):
    fc = torch.nn.Linear(4, 8).double()
    first, second = nn.GLU(4, 4, fc, vbs=8), nn.GLU(4, 4, fc, vbs=8)
    assert first.fc is second.fc
    module = lively(torch.nn.Sequential(first, second))
    compare(module, lambda m, x: plain_glu(m[1], plain_glu(m[0], x)), randn(20, 4))
    assert [n for n, _ in module.named_parameters() if "fc" in n] == ["0.fc.weight", "0.fc.bias"]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("n_shared, n_ind", [(2, 2), (0, 2), (1, 1), (3, 0), (0, 1)])
def test_feature_transformer(n_shared, n_ind, training, backend):
    shared = None
    if n_shared:
        shared = torch.nn.ModuleList([torch.nn.Linear(6 if i == 0 else 4, 8) for i in range(n_shared)])
    module = lively(nn.FeatureTransformer(6, 4, shared, n_ind, vbs=10)).train(training)
    compare(module, plain_transformer, randn(33, 6))


@pytest.mark.parametrize("training", [True, False])
def test_attentive_transformer(training, backend):
    module = lively(nn.AttentiveTransformer(4, 7, relax=1.3, vbs=10)).train(training)
    compare(module, plain_attention, randn(33, 4), 0.5 + randn(33, 7, seed=1).abs())


def test_decision_step(backend):
    module = lively(nn.DecisionStep(7, 3, 2, None, 2, 1.3, vbs=10))
    plain = copy.deepcopy(module)
    x, a, priors = randn(33, 7), randn(33, 2, seed=1), torch.ones(33, 7).double()
    transformed, loss = module(x, a, priors)
    mask = plain_attention(plain.atten_tran, a, priors)
    assert_close("transformed", transformed, plain_transformer(plain.fea_tran, x * mask), tolerance=LOOSE)
    assert_close("loss", loss, (-mask * torch.log(mask + 1e-10)).mean(), tolerance=LOOSE)


def test_priors_are_brought_to_the_logits_dtype():
    module = nn.AttentiveTransformer(4, 7, relax=1.3).double()
    assert module(randn(9, 4), torch.ones(9, 7)).dtype == torch.float64


def test_batches_are_counted_as_torch_counts_them():
    module = nn.GhostBatchNorm(3, vbs=4)
    for rows in (3, 4, 8, 13):  # 1 + 1 + 2 + 3 virtual batches
        module(torch.randn(rows, 3))
    assert module.bn.num_batches_tracked.item() == 7
    module.eval()(torch.randn(8, 3))
    assert module.bn.num_batches_tracked.item() == 7


def test_the_mode_of_the_block_decides():
    module = nn.GhostBatchNorm(3, vbs=4)
    x = torch.randn(8, 3)
    before = module.bn.running_mean.clone()
    module.eval()
    assert_close("fresh statistics", module(x), x / math.sqrt(1 + 1e-5))
    assert torch.equal(module.bn.running_mean, before)


@pytest.mark.parametrize("vbs", [0, -1])
def test_virtual_batch_size_below_one(vbs):
    with pytest.raises(ValueError, match=rf"GhostBatchNorm: vbs \(virtual batch size\) must be at least 1, got {vbs}"):
        nn.GhostBatchNorm(3, vbs=vbs)
    with pytest.raises(ValueError, match="vbs"):
        nn.GLU(3, 3, vbs=vbs)


@pytest.mark.parametrize(
    "module, x, message",
    [
        (nn.GhostBatchNorm(3), torch.randn(1, 3), "more than one row in every virtual batch when training, got 1 rows"),
        (nn.GhostBatchNorm(3), torch.randn(6, 4), r"weight must be of shape \[4\], got \[3\]"),
        (nn.GhostBatchNorm(3), torch.randn(2, 6, 3), r"x must be of shape \[B, F\], got \[2, 6, 3\]"),
        (nn.GLU(3, 2), torch.randn(1, 3), "must be of more than one row in every virtual batch"),
    ],
)
def test_bad_inputs_leave_the_module_as_it_was(module, x, message):
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=message):
        module(x)
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_sparsemax_module():
    x = torch.randn(4, 5, 6)
    assert torch.equal(nn.Sparsemax(1)(x), ak.ops.sparsemax(x, 1))
    assert repr(nn.Sparsemax(1)) == "Sparsemax(dim=1)"


@pytest.mark.parametrize("round_trip", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_round_trips(round_trip):
    module = lively(nn.DecisionStep(7, 3, 2, None, 2, 1.3, vbs=10)).eval()
    x, a, priors = randn(9, 7), randn(9, 2, seed=1), torch.ones(9, 7).double()
    again = round_trip(module)
    assert torch.equal(again(x, a, priors)[0], module(x, a, priors)[0])
    assert again is not module


def test_autocast_keeps_parameters_and_results_of_norms_in_float32():
    module = nn.FeatureTransformer(6, 4, None, 2, vbs=8)
    x = torch.randn(24, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(x)
    assert out.dtype == torch.float32
    out.sum().backward()
    assert {p.grad.dtype for p in module.parameters()} == {torch.float32} and x.grad.dtype == torch.float32
    assert_close("out", out, module(x), tolerance=Tolerance(0.05, 0.05))  # bfloat16 products before a norm
    module.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(x).dtype == torch.float32
