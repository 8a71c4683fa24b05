"""The fused mask against its parts: sparsemax, the entropy term, the prior of the next step."""

from __future__ import annotations

import pytest
import torch

import alphakernels as ak
from alphakernels import ops
from alphakernels.testing import assert_close


@pytest.fixture(params=["auto", "reference"], autouse=True)
def backend(request):
    with ak.use_backend(request.param):
        yield request.param


def inputs(rows=37, features=29, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, features, generator=generator).to(dtype)
    return logits, (0.25 + torch.rand(rows, features, generator=generator)).to(dtype)


def test_its_parts():
    logits, prior = inputs(dtype=torch.float64)
    got = ops.attentive_mask(logits, prior, 1.5, update_prior=True, eps=1e-6)
    mask = ops.sparsemax(logits * prior)
    assert_close("mask", got.mask, mask)
    assert_close("entropy", got.entropy, (-mask * torch.log(mask + 1e-6)).mean())
    assert_close("new_prior", got.new_prior, prior * (1.5 - mask))
    assert got.entropy.shape == ()


def test_without_the_update_there_is_no_new_prior():
    assert ops.attentive_mask(*inputs()).new_prior is None


def test_relax_of_one_lets_a_feature_be_used_once():
    logits = torch.zeros(4, 6)
    logits[:, 2] = 5.0
    first = ops.attentive_mask(logits, torch.ones(4, 6), 1.0, update_prior=True)
    assert first.mask[:, 2].tolist() == [1.0] * 4
    second = ops.attentive_mask(logits, first.new_prior, 1.0)
    assert_close("second mask", second.mask, torch.full((4, 6), 1 / 6))


def test_ones_as_prior_are_sparsemax_bitwise():
    logits, _ = inputs(seed=1)
    assert torch.equal(ops.attentive_mask(logits, torch.ones_like(logits)).mask, ops.sparsemax(logits))


@pytest.mark.parametrize("output", ["mask", "entropy", "new_prior"])
def test_gradient_of_one_output_alone(output):
    """Outputs that no loss uses bring no gradient; the prior's is right through each of them."""
    logits, prior = (t.requires_grad_() for t in inputs(seed=2, dtype=torch.float64))
    chosen = getattr(ops.attentive_mask(logits, prior, update_prior=True), output)
    weights = torch.randn(chosen.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    actual = torch.autograd.grad((chosen * weights).sum(), (logits, prior))

    mask = ops.sparsemax(logits * prior)
    parts = {"mask": mask, "entropy": (-mask * torch.log(mask + 1e-10)).mean(), "new_prior": prior * (1.3 - mask)}
    expected = torch.autograd.grad((parts[output] * weights).sum(), (logits, prior))
    for name, a, e in zip(("logits", "prior"), actual, expected, strict=True):
        assert_close(f"d{output} / d{name}", a, e)


def test_hidden_features_and_rows_without_a_meaning():
    logits, prior = inputs(5, 9, seed=4)
    logits[:, 3] = -torch.inf
    logits[2] = -torch.inf
    logits[4, 1] = torch.nan
    got = ops.attentive_mask(logits, prior, update_prior=True)
    assert got.mask[[2, 4]].isnan().all() and got.new_prior[[2, 4]].isnan().all() and got.entropy.isnan()
    assert not got.mask[[0, 1, 3]].isnan().any()
    assert (got.mask[[0, 1, 3], 3] == 0).all()
    assert torch.equal(got.new_prior[[0, 1, 3], 3], prior[[0, 1, 3], 3] * 1.3)
