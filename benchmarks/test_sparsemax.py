"""sparsemax against torch.softmax (the speed of light of this shape), entmax and Qlib."""

from __future__ import annotations

import pytest
import torch

from alphakernels import ops

SIZES = [(4096, 158), (16384, 158), (800, 4096)]


def _peers() -> dict:
    peers = {"torch.softmax": lambda x: torch.softmax(x, -1)}
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


@pytest.mark.parametrize("rows, columns", SIZES)
def test_forward(compare, device, rows, columns) -> None:
    x = torch.randn(rows, columns, device=device)
    compare(
        f"sparsemax [{rows}, {columns}] forward",
        lambda: ops.sparsemax(x),
        {name: lambda f=f: f(x) for name, f in _peers().items()},
        moved=2 * 4 * x.numel(),
        targets={"torch.softmax": 1 / 1.5},
    )


@pytest.mark.parametrize("rows, columns", SIZES)
def test_forward_backward(compare, device, rows, columns) -> None:
    x = torch.randn(rows, columns, device=device, requires_grad=True)
    grad = torch.randn(rows, columns, device=device)

    def step(f):
        return torch.autograd.grad(f(x), x, grad)

    compare(
        f"sparsemax [{rows}, {columns}] fwd + bwd",
        lambda: step(ops.sparsemax),
        {name: lambda f=f: step(f) for name, f in _peers().items()},
        moved=5 * 4 * x.numel(),
        targets={"torch.softmax": 1 / 1.5},
    )
