"""sparsemax against torch.softmax (the speed of light of this shape), entmax and Qlib."""

from __future__ import annotations

import pytest
import torch

from alphakernels import ops

SIZES = [(4096, 158), (16384, 158), (800, 4096)]


def softmax(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x, -1)


def originals() -> dict:
    """The sparsemaxes that people run today."""
    peers = {}
    try:
        import entmax

        peers["entmax exact"] = lambda x: entmax.sparsemax(x, dim=-1)
        peers["entmax k=32"] = lambda x: entmax.sparsemax(x, dim=-1, k=32)
    except ImportError:
        pass
    try:
        from qlib.contrib.model.pytorch_tabnet import SparsemaxFunction

        peers["Qlib"] = lambda x: SparsemaxFunction.apply(x.clone())  # it writes into its input
    except ImportError:
        pass
    return peers


# Softmax's turns are ours alone to share: the originals leave the allocator in another state, whose page faults are many times of either.
@pytest.mark.parametrize("against", ["softmax", "originals"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "fwd+bwd"])
@pytest.mark.parametrize("rows, columns", SIZES)
def test_sparsemax(compare, device, rows, columns, backward, against) -> None:
    x = torch.randn(rows, columns, device=device, requires_grad=backward)
    grad = torch.randn(rows, columns, device=device)

    def step(f):
        return (lambda: torch.autograd.grad(f(x), x, grad)) if backward else (lambda: f(x))

    peers = {"torch.softmax": softmax} if against == "softmax" else originals()
    compare(
        f"sparsemax [{rows}, {columns}] {'fwd + bwd' if backward else 'forward'}{'' if against == 'softmax' else ', originals'}",
        step(ops.sparsemax),
        {name: step(f) for name, f in peers.items()},
        moved=(5 if backward else 2) * 4 * x.numel(),
        targets={"torch.softmax": 1 / 1.5} if against == "softmax" else {},
        settle=True,
    )
