"""The GLU block (ghost norm + gate + residual) against the chain of eager ops that Qlib runs, and against torch.compile."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from alphakernels import ops

SCALE = math.sqrt(0.5)


def chain(u, residual, weight, bias, running_mean, running_var, virtual_batch_size):
    """Qlib's GBN, GLU and residual, op by op."""
    chunks = u.chunk(max(1, u.shape[0] // virtual_batch_size))
    v = torch.cat([F.batch_norm(c, running_mean, running_var, weight, bias, True, 0.01, 1e-5) for c in chunks])
    h = u.shape[1] // 2
    return (residual + v[:, :h] * torch.sigmoid(v[:, h:])) * SCALE


@pytest.mark.parametrize("rows, columns, virtual_batch_size", [(4096, 256, 2048), (16384, 256, 2048), (4096, 256, 256)])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "fwd+bwd"])
def test_glu_block(compare, device, rows, columns, virtual_batch_size, backward) -> None:
    def random(*shape):
        return torch.randn(*shape, device=device, requires_grad=backward)

    u, residual, weight, bias = random(rows, columns), random(rows, columns // 2), random(columns), random(columns)
    grad = torch.randn(rows, columns // 2, device=device)
    running = torch.zeros(columns, device=device), torch.ones(columns, device=device)

    def ours():
        return ops.glu_block(
            u, weight, bias, *running, virtual_batch_size=virtual_batch_size, residual=residual, scale=SCALE
        )

    def eager():
        return chain(u, residual, weight, bias, *running, virtual_batch_size)

    compiled = torch.compile(chain, dynamic=False)

    def inductor():
        return compiled(u, residual, weight, bias, *running, virtual_batch_size)

    def step(f):
        out = f()
        return torch.autograd.grad(out, (u, residual, weight, bias), grad) if backward else out

    # Read u twice and the residual, write the output; backward: gradient and u read twice, du and the residual's gradient written.
    moved = 4 * rows * columns * (2 + 1) + (4 * rows * columns * (2 * 1.5 + 1.5) if backward else 0)
    compare(
        f"GLU block [{rows}, {columns}] vbs {virtual_batch_size} {'fwd + bwd' if backward else 'forward'}",
        lambda: step(ours),
        {"eager chain": lambda: step(eager), "torch.compile": lambda: step(inductor)},
        moved=moved,
        targets={"eager chain": 2.5} if backward else {},
        settle=True,
    )
