"""Each block of TabNet against Qlib's in float32: outputs, gradients and running statistics to 1e-5, in training and evaluation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from alphakernels import ops
from alphakernels.nn import GLU, AttentiveTransformer, DecisionStep, FeatureTransformer, GhostBatchNorm

qlib = pytest.importorskip("qlib.contrib.model.pytorch_tabnet")

RELATIVE = 1e-5
D, H, VBS = 13, 9, 32


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shared_layers():
    return nn.ModuleList([nn.Linear(D, 2 * H), nn.Linear(H, 2 * H)])


# Qlib's block, ours, and the tensors it is called with, of B rows. The priors are hidden entries, as in pretraining.
BLOCKS = {
    "ghost norm": (lambda: qlib.GBN(D, VBS), lambda: GhostBatchNorm(D, VBS), [D]),
    "GLU": (lambda: qlib.GLU(D, H, vbs=VBS), lambda: GLU(D, H, vbs=VBS), [D]),
    "feature transformer": (
        lambda: qlib.FeatureTransformer(D, H, shared_layers(), 2, VBS),
        lambda: FeatureTransformer(D, H, shared_layers(), 2, VBS),
        [D],
    ),
    "feature transformer, nothing shared": (
        lambda: qlib.FeatureTransformer(H, H, None, 2, VBS),
        lambda: FeatureTransformer(H, H, None, 2, VBS),
        [H],
    ),
    "attentive transformer": (
        lambda: qlib.AttentionTransformer(H, D, 1.3, VBS),
        lambda: AttentiveTransformer(H, D, 1.3, VBS),
        [H, "priors"],
    ),
    "decision step": (
        lambda: qlib.DecisionStep(D, 4, 5, shared_layers(), 2, 1.3, VBS),
        lambda: DecisionStep(D, 4, 5, shared_layers(), 2, 1.3, VBS),
        [D, 5, "priors"],
    ),
}


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def run(block, tensors):
    """Outputs, gradients by name of a random combination of them, and running statistics."""
    tensors = [t.clone().requires_grad_() for t in tensors]
    outputs = block(*tensors)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum((t * randn(*t.shape, seed=8)).sum() for t in outputs).backward()
    gradients = {f"input {number}": t.grad for number, t in enumerate(tensors)}
    gradients |= {name: p.grad for name, p in block.named_parameters(remove_duplicate=False)}
    return [t.detach() for t in outputs], gradients, dict(block.named_buffers())


@pytest.mark.parametrize("training", [True, False])
# Less than a virtual batch, exactly one, chunks of 50, 50 (more rows than asked for), and a ragged last one.
@pytest.mark.parametrize("rows", [20, 32, 100, 7 * 32 + 5])
@pytest.mark.parametrize("name", BLOCKS)
def test_block(name, rows, training, lively):
    make_theirs, make_ours, columns = BLOCKS[name]
    blocks = []
    for make in (make_theirs, make_ours):
        torch.manual_seed(2)
        blocks.append(make().train(training))
    theirs, ours = blocks
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(ours.state_dict()[key], t) for key, t in theirs.state_dict().items())
    lively(theirs, ours)
    tensors = [
        (randn(rows, D, seed=7) < 0.8).float() if column == "priors" else randn(rows, column, seed=number)
        for number, column in enumerate(columns)
    ]
    untouched = [t.clone() for t in tensors]
    got, gradients, buffers = run(ours, tensors)
    assert all(torch.equal(t, before) for t, before in zip(tensors, untouched, strict=True))
    expected, expected_gradients, expected_buffers = run(theirs, tensors)

    for number, (one, other) in enumerate(zip(got, expected, strict=True)):
        assert relative_error(one, other) < RELATIVE, f"output {number}"
    assert list(gradients) == list(expected_gradients)
    for key, gradient in expected_gradients.items():
        if training and key.endswith("fc.bias"):
            assert not gradients[key].any(), f"{key}: the norm behind it cancels it"
            weight = expected_gradients[key.removesuffix("bias") + "weight"]
            assert gradient.norm() < RELATIVE * weight.norm(), f"{key}: Qlib's is rounding noise"
        else:
            assert relative_error(gradients[key], gradient) < RELATIVE, f"gradient of {key}"
    assert list(buffers) == list(expected_buffers)
    for key, buffer in expected_buffers.items():
        if buffer.is_floating_point():
            assert relative_error(buffers[key], buffer) < RELATIVE, key
        else:
            assert torch.equal(buffers[key], buffer), key


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("shape", [(257, 158), (40, 1), (1, 5)])
def test_sparsemax(shape, scale):
    x = scale * randn(*shape, seed=4)
    weights = randn(*shape, seed=5)
    leaf = x.clone().requires_grad_()
    got = ops.sparsemax(leaf)
    (got * weights).sum().backward()
    assert torch.equal(leaf.detach(), x)

    copy = x.clone()
    theirs = copy.clone().requires_grad_()
    # Qlib's writes into what it is given, so it is given something that may be written to.
    expected = qlib.SparsemaxFunction.apply(theirs * 1.0)
    torch.testing.assert_close(got, expected, rtol=0, atol=4e-6)
    torch.testing.assert_close(got.sum(-1), torch.ones(shape[0]))
    if shape[0] > 1:  # with one row Qlib's `squeeze` also drops the row axis
        (expected * weights).sum().backward()
        assert torch.equal(got > 0, expected > 0)
        assert relative_error(leaf.grad, theirs.grad) < RELATIVE or shape[1] == 1


def test_qlibs_sparsemax_writes_to_its_input_and_ours_does_not():
    x = randn(5, 7)
    theirs, ours = x.clone(), x.clone()
    qlib.SparsemaxFunction.apply(theirs)
    ops.sparsemax(ours)
    assert not torch.equal(theirs, x)
    assert torch.equal(ours, x)
