"""TabNet's GLU block on the GPU: after the statistics, norm, gate and residual are one pass over u; two passes backward."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ghost_batch_norm.op import statistics_dtype
from ..ghost_batch_norm.triton import (
    COLUMNS,
    CUT,
    ROWS,
    Blocks,
    affine,
    block_rows,
    chunk_statistics,
    dense,
    joined,
    mean_part,
    pointers,
)


@triton.jit
def _forward(u, residual, out, mean, rstd, weight, bias, rows, size, chunks, per_chunk, n, scale, RESIDUAL: tl.constexpr,
             WEIGHT: tl.constexpr, BIAS: tl.constexpr, NORM: tl.constexpr, ROWS: tl.constexpr,
             COLUMNS: tl.constexpr):  # fmt: skip
    h = n // 2
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    chunk, row, real = block_rows(tl.program_id(0), rows, size, chunks, per_chunk, ROWS)
    there = real[:, None] & (column < h)[None, :]
    value, _, _ = affine(u, mean, rstd, weight, bias, row, column, chunk, n, there, WEIGHT, BIAS, NORM)
    gate, _, _ = affine(u, mean, rstd, weight, bias, row, column + h, chunk, n, there, WEIGHT, BIAS, NORM)
    y = value * tl.sigmoid(gate)
    at = row[:, None] * h + column[None, :]
    if RESIDUAL:
        y += tl.load(residual + at, there, 0.0).to(tl.float32)
    tl.store(out + at, y * scale, there)


@triton.jit
def _gate_gradient(grad, u, mean, rstd, weight, bias, du, dresidual, s1, s2, rows, size, chunks, per_chunk, n, scale,
                   WEIGHT: tl.constexpr, BIAS: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, ROWS: tl.constexpr,
                   COLUMNS: tl.constexpr):  # fmt: skip
    """The gradients of v, in float32, and of the residual; with a norm also the column sums of the first over the block."""
    h = n // 2
    block = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    chunk, row, real = block_rows(block, rows, size, chunks, per_chunk, ROWS)
    there = real[:, None] & (column < h)[None, :]
    value, xhat_value, _ = affine(u, mean, rstd, weight, bias, row, column, chunk, n, there, WEIGHT, BIAS, NORM)
    gate, xhat_gate, _ = affine(u, mean, rstd, weight, bias, row, column + h, chunk, n, there, WEIGHT, BIAS, NORM)
    half = row[:, None] * h + column[None, :]
    g = tl.load(grad + half, there, 0.0).to(tl.float32) * scale
    if RESIDUAL:
        tl.store(dresidual + half, g, there)
    s = tl.sigmoid(gate)
    dvalue = tl.where(there, g * s, 0.0)
    dgate = tl.where(there, dvalue * value * (1.0 - s), 0.0)
    at = row[:, None] * n + column[None, :]
    tl.store(du + at, dvalue, there)
    tl.store(du + at + h, dgate, there)
    if NORM:
        base = block.to(tl.int64) * n + column
        tl.store(s1 + base, tl.sum(dvalue, 0), column < h)
        tl.store(s1 + base + h, tl.sum(dgate, 0), column < h)
        tl.store(s2 + base, tl.sum(dvalue * xhat_value, 0), column < h)
        tl.store(s2 + base + h, tl.sum(dgate * xhat_gate, 0), column < h)


@triton.jit
def _through_norm(dv, u, mean, rstd, weight, s1, s2, du, rows, size, chunks, per_chunk, n, WEIGHT: tl.constexpr,
                  TRAINING: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    chunk, row, real = block_rows(tl.program_id(0), rows, size, chunks, per_chunk, ROWS)
    there = real[:, None] & (column < n)[None, :]
    _, xhat, scale = affine(u, mean, rstd, weight, u, row, column, chunk, n, there, WEIGHT, False, True)
    at = row[:, None] * n + column[None, :]
    d = tl.load(dv + at, there, 0.0)
    if TRAINING:
        d -= mean_part(xhat, s1, s2, rows, size, chunks, chunk, column, n)
    tl.store(du + at, d * scale[None, :], there)


def glu_block(
    u: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
    running_var: Tensor | None, linear_bias: Tensor | None, virtual_batch_size: int, training: bool, momentum: float,
    eps: float, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(out [B, H], mean, rstd, new running mean, new running variance)."""
    u, residual, weight, bias, running_mean, running_var, linear_bias = dense(
        u, residual, weight, bias, running_mean, running_var, linear_bias
    )
    rows, n = u.shape
    norm = training or running_mean is not None
    blocks = Blocks.of(rows, virtual_batch_size, training)
    if norm:
        state = chunk_statistics(u, running_mean, running_var, linear_bias, blocks, training, momentum, eps)
    else:
        weight, bias, dtype = None, linear_bias, statistics_dtype(u)
        state = tuple(u.new_empty(shape, dtype=dtype) for shape in ((0, n), (0, n), (0,), (0,)))
    out = u.new_empty(rows, n // 2)
    if out.numel():
        _forward[blocks.grid(n // 2)](
            u, u if residual is None else residual, out, state[0], state[1], u if weight is None else weight,
            u if bias is None else bias, *blocks.arguments, n, scale, RESIDUAL=residual is not None,
            WEIGHT=weight is not None, BIAS=bias is not None, NORM=norm, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4,
        )  # fmt: skip
    return out, *state


def glu_block_backward(
    grad: Tensor, u: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor,
    virtual_batch_size: int, training: bool, scale: float, residual_needs_grad: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(du, dresidual, dweight, dbias); dresidual is empty where it is not needed, dweight and dbias without a norm (empty mean)."""
    grad, u, weight, bias, mean, rstd = dense(grad, u, weight, bias, mean, rstd)
    rows, n = u.shape
    norm = mean.shape[0] > 0
    blocks = Blocks.of(rows, virtual_batch_size, training)
    du, dresidual = torch.empty_like(u), u.new_empty(rows if residual_needs_grad else 0, n // 2)
    nothing = mean.new_zeros(n if norm else 0)
    if u.numel() == 0:
        return du, dresidual, nothing, nothing.clone()
    tiles = {"ROWS": ROWS, "COLUMNS": COLUMNS, "num_warps": 4}
    grid = blocks.grid(n // 2)
    dv = torch.empty_like(u, dtype=mean.dtype) if norm else du
    part1, part2 = (mean.new_empty(grid[0], n) for _ in range(2))
    _gate_gradient[grid](
        grad, u, mean, rstd, u if weight is None else weight, u if bias is None else bias, dv, dresidual, part1, part2,
        *blocks.arguments, n, scale, WEIGHT=weight is not None, BIAS=bias is not None, NORM=norm, RESIDUAL=residual_needs_grad, **tiles,
    )  # fmt: skip
    if not norm:
        return du, dresidual, nothing, nothing.clone()
    s1, s2 = joined(part1, part2, blocks)
    _through_norm[blocks.grid(n)](
        dv, u, mean, rstd, u if weight is None else weight, s1, s2, du, *blocks.arguments, n,
        WEIGHT=weight is not None, TRAINING=training, **tiles,
    )  # fmt: skip
    return du, dresidual, s2.sum(0), s1.sum(0)


_TILE = {"ROWS": ROWS, "COLUMNS": COLUMNS}
AOT = [
    (
        _forward,
        {**pointers("u", "residual", "out", "mean", "rstd", "weight", "bias"), **CUT, "scale": "fp32"},
        {"RESIDUAL": True, "WEIGHT": True, "BIAS": True, "NORM": True, **_TILE},
        4,
    ),
    (
        _gate_gradient,
        {**pointers("grad", "u", "mean", "rstd", "weight", "bias", "du", "dresidual", "s1", "s2"), **CUT, "scale": "fp32"},
        {"WEIGHT": True, "BIAS": True, "NORM": True, "RESIDUAL": True, **_TILE},
        4,
    ),
    (
        _through_norm,
        {**pointers("dv", "u", "mean", "rstd", "weight", "s1", "s2", "du"), **CUT},
        {"WEIGHT": True, "TRAINING": True, **_TILE},
        4,
    ),
]
