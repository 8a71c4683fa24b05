"""nn.Linear: torch's numbers, rows that do not depend on their batch."""

from __future__ import annotations

import pytest
import torch

from alphakernels import nn
from alphakernels.testing import assert_close


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (37, 7), (3, 5, 7), (0, 7)])
def test_as_torchs(shape, bias):
    ours, theirs = nn.Linear(7, 3, bias=bias).double(), torch.nn.Linear(7, 3, bias=bias).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert_close("output", ours(x), theirs(x))
    for name, ours_grad, theirs_grad in zip(
        ("x", "weight", "bias"),
        torch.autograd.grad(ours(x).square().sum(), [x, *ours.parameters()]),
        torch.autograd.grad(theirs(x).square().sum(), [x, *theirs.parameters()]),
        strict=False,
    ):
        assert_close(name, ours_grad, theirs_grad)


def test_a_row_does_not_depend_on_its_batch():
    layer, x = nn.Linear(64, 1), torch.randn(101, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = layer(x)
        for size in (1, 2, 7, 50):
            assert torch.equal(torch.cat([layer(part) for part in x.split(size)]), whole)
