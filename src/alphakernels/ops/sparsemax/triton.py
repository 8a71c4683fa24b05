"""Sparsemax on the GPU: a tile of rows in registers, Newton's iteration on the threshold of each, no sort.

The iteration and why it ends are told in csrc/cpu/sparsemax_row.h. Rows longer than `MAX_TILE` stream through it chunk by chunk.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ghost_batch_norm.triton import aligned, dense

MAX_TILE = 16384  # columns that one program holds in registers
CHUNK = 8192


@triton.jit
def project(z, columns):
    """Sparsemax of every row of z [ROWS, BLOCK], float32; columns [1, BLOCK] says which exist. A row without a meaning gives NaN."""
    z = tl.where(columns, z, -float("inf"))
    top = tl.max(z, 1)  # [ROWS]
    nan = tl.max((z != z).to(tl.int32), 1)
    bad = (nan > 0) | (top == float("inf")) | (top == -float("inf"))
    z = tl.where(columns, tl.where(bad[:, None], 0.0, z - top[:, None]), -float("inf"))  # what matters lies in [-1, 0]
    tau = tl.full(top.shape, -1.0, tl.float32)
    support = tl.full(top.shape, float("inf"), tl.float32)
    moved = 1
    while moved > 0:
        inside = z > tau[:, None]
        size = tl.sum(inside.to(tl.float32), 1)
        smaller = size < support  # once it is not, tau is exact
        tau = tl.where(smaller, (tl.sum(tl.where(inside, z, 0.0), 1) - 1.0) / size, tau)
        support = tl.where(smaller, size, support)
        moved = tl.max(smaller.to(tl.int32), 0)
    p = tl.maximum(z - tau[:, None], 0.0)
    return tl.where(bad[:, None], float("nan"), p)


@triton.jit
def centre_on_support(grad, p):
    """The gradient of sparsemax, rows [ROWS, BLOCK]: grad less its mean over the support {p > 0}, zero elsewhere; NaN stays NaN."""
    inside = p != 0
    poisoned = tl.where(inside, grad + (p - p), 0.0)
    size = tl.maximum(tl.sum(inside.to(tl.float32), 1), 1.0)
    mean = tl.sum(poisoned, 1) / size
    return tl.where(inside, grad - mean[:, None], 0.0)


@triton.jit
def _forward(x, out, rows, n, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    there = (row < rows) & (column < n)
    z = tl.load(x + row * n + column, there, 0.0).to(tl.float32)
    tl.store(out + row * n + column, project(z, column < n), there)


@triton.jit
def _backward(grad, mask, out, rows, n, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    there = (row < rows) & (column < n)
    g = tl.load(grad + row * n + column, there, 0.0).to(tl.float32)
    p = tl.load(mask + row * n + column, there, 0.0).to(tl.float32)
    tl.store(out + row * n + column, centre_on_support(g, p), there)


@triton.jit
def _forward_long(x, out, n, BLOCK: tl.constexpr):
    x += tl.program_id(0).to(tl.int64) * n
    out += tl.program_id(0).to(tl.int64) * n
    column = tl.arange(0, BLOCK)
    tops = tl.full((BLOCK,), -float("inf"), tl.float32)
    nans = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, n, BLOCK):
        z = tl.load(x + start + column, start + column < n, -float("inf")).to(tl.float32)
        tops = tl.maximum(tops, z)
        nans |= (z != z).to(tl.int32)
    top = tl.max(tops, 0)
    bad = (tl.max(nans, 0) > 0) | (top == float("inf")) | (top == -float("inf"))
    tau = -1.0
    support = float("inf")
    moved = tl.where(bad, 0, 1)
    while moved > 0:
        insides = tl.zeros((BLOCK,), tl.float32)
        sizes = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, n, BLOCK):
            z = tl.load(x + start + column, start + column < n, -float("inf")).to(tl.float32) - top
            insides += tl.where(z > tau, z, 0.0)
            sizes += (z > tau).to(tl.float32)
        size = tl.sum(sizes, 0)
        moved = (size < support).to(tl.int32)
        tau = tl.where(moved > 0, (tl.sum(insides, 0) - 1.0) / size, tau)
        support = tl.where(moved > 0, size, support)
    for start in range(0, n, BLOCK):
        z = tl.load(x + start + column, start + column < n, 0.0).to(tl.float32) - top
        tl.store(out + start + column, tl.where(bad, float("nan"), tl.maximum(z - tau, 0.0)), start + column < n)


@triton.jit
def _backward_long(grad, mask, out, n, BLOCK: tl.constexpr):
    offset = tl.program_id(0).to(tl.int64) * n
    column = tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK,), tl.float32)
    sizes = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n, BLOCK):
        g = tl.load(grad + offset + start + column, start + column < n, 0.0).to(tl.float32)
        p = tl.load(mask + offset + start + column, start + column < n, 0.0).to(tl.float32)
        sums += tl.where(p != 0, g + (p - p), 0.0)
        sizes += (p != 0).to(tl.float32)
    mean = tl.sum(sums, 0) / tl.maximum(tl.sum(sizes, 0), 1.0)
    for start in range(0, n, BLOCK):
        g = tl.load(grad + offset + start + column, start + column < n, 0.0).to(tl.float32)
        p = tl.load(mask + offset + start + column, start + column < n, 0.0).to(tl.float32)
        tl.store(out + offset + start + column, tl.where(p != 0, g - mean, 0.0), start + column < n)


def tile(n: int) -> dict[str, int]:
    """Rows and columns of a program's tile, and its warps: about 2,048 elements, a whole row at least."""
    block = triton.next_power_of_2(n)
    rows = max(1, min(16, 2048 // block))
    return {"ROWS": rows, "BLOCK": block, "num_warps": max(1, min(16, rows * block // 512))}


def sparsemax(x: Tensor) -> Tensor:
    """Over the last dimension."""
    x = aligned(x)
    out = torch.empty_like(x)
    n = x.shape[-1] if x.dim() else 1
    if x.numel() == 0:
        return out
    rows = x.numel() // n
    if n > MAX_TILE:
        _forward_long[(rows,)](x, out, n, BLOCK=CHUNK, num_warps=8)
    else:
        shape = tile(n)
        _forward[(triton.cdiv(rows, shape["ROWS"]),)](x, out, rows, n, **shape)
    return out


def sparsemax_backward(grad: Tensor, mask: Tensor) -> Tensor:
    """grad less its mean over each row's support, zero elsewhere."""
    grad, mask = dense(grad, mask)
    out = torch.empty_like(grad)
    n = grad.shape[-1] if grad.dim() else 1
    if grad.numel() == 0:
        return out
    rows = grad.numel() // n
    if n > MAX_TILE:
        _backward_long[(rows,)](grad, mask, out, n, BLOCK=CHUNK, num_warps=8)
    else:
        shape = tile(n)
        _backward[(triton.cdiv(rows, shape["ROWS"]),)](grad, mask, out, rows, n, **shape)
    return out


# What the tests compile ahead of time: kernel, types of its arguments, constants, warps.
AOT = [
    (_forward, {"x": "*fp32", "out": "*fp32", "rows": "i32", "n": "i32"}, {"ROWS": 8, "BLOCK": 256}, 4),
    (_forward, {"x": "*bf16", "out": "*bf16", "rows": "i32", "n": "i32"}, {"ROWS": 1, "BLOCK": MAX_TILE}, 16),
    (_backward, {"grad": "*fp32", "mask": "*fp32", "out": "*fp32", "rows": "i32", "n": "i32"}, {"ROWS": 8, "BLOCK": 256}, 4),
    (_forward_long, {"x": "*fp32", "out": "*fp32", "n": "i32"}, {"BLOCK": CHUNK}, 8),
    (_backward_long, {"grad": "*fp32", "mask": "*fp32", "out": "*fp32", "n": "i32"}, {"BLOCK": CHUNK}, 8),
]
