"""Ghost batch norm on the GPU: partial statistics of row blocks, joined in a fixed order, then one pass that normalises.

No atomics and no tuning that changes a sum: the result is the same run after run. `glu_block` shares the statistics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .op import statistics_dtype
from .reference import chunk_sizes

ROWS = 64  # rows of a block: the tile [ROWS, COLUMNS] stays in registers
COLUMNS = 32


def dense(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Contiguous, as the kernels address them."""
    return tuple(None if t is None else t.contiguous() for t in tensors)


@dataclass(frozen=True)
class Blocks:
    """How rows are cut: chunks (virtual batches) of `size` rows, the last to the end, each cut into `per_chunk` blocks."""

    rows: int
    size: int
    chunks: int
    per_chunk: int

    @classmethod
    def of(cls, rows: int, virtual_batch_size: int, training: bool) -> Blocks:
        sizes = chunk_sizes(rows, virtual_batch_size) if training else [rows]
        return cls(rows, sizes[0], len(sizes), triton.cdiv(max(sizes), ROWS))

    def grid(self, columns: int) -> tuple[int, int]:
        return self.chunks * self.per_chunk, triton.cdiv(columns, COLUMNS)

    @property
    def arguments(self) -> tuple[int, int, int, int]:
        return self.rows, self.size, self.chunks, self.per_chunk


@triton.jit
def block_rows(block, rows, size, chunks, per_chunk, ROWS: tl.constexpr):
    """Chunk of a block, its row numbers [ROWS] and which of them exist."""
    chunk = block // per_chunk
    begin = chunk.to(tl.int64) * size
    end = tl.where(chunk == chunks - 1, rows, begin + size)
    row = begin + (block % per_chunk).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    return chunk, row, row < end


@triton.jit
def statistics(x, mean, m2, rows, size, chunks, per_chunk, n, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Mean and sum of squared distances of every column over one block of rows: partial results [blocks, n]."""
    block = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    _, row, real = block_rows(block, rows, size, chunks, per_chunk, ROWS)
    there = real[:, None] & (column < n)[None, :]
    v = tl.load(x + row[:, None] * n + column[None, :], there, 0.0).to(tl.float32)
    count = tl.maximum(tl.sum(real.to(tl.float32), 0), 1.0)
    mu = tl.sum(v, 0) / count
    d = tl.where(there, v - mu[None, :], 0.0)
    at = block.to(tl.int64) * n + column
    tl.store(mean + at, mu + tl.sum(d, 0) / count, column < n)
    tl.store(m2 + at, tl.sum(d * d, 0), column < n)


@triton.jit
def join_statistics(part_mean, part_m2, mean, rstd, running_mean, running_var, linear_bias, new_mean, new_var, rows, size,
                    chunks, per_chunk, n, momentum, eps, RUNNING: tl.constexpr, BIAS: tl.constexpr, ROWS: tl.constexpr,
                    COLUMNS: tl.constexpr):  # fmt: skip
    """Chan's formula over the blocks of each chunk, in order; then the running statistics, chunk after chunk."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there = column < n
    run_mean = tl.zeros((COLUMNS,), tl.float32)
    run_var = tl.zeros((COLUMNS,), tl.float32)
    shift = tl.zeros((COLUMNS,), tl.float32)
    if RUNNING:
        run_mean += tl.load(running_mean + column, there, 0.0).to(tl.float32)
        run_var += tl.load(running_var + column, there, 0.0).to(tl.float32)
    if BIAS:
        shift += tl.load(linear_bias + column, there, 0.0).to(tl.float32)
    for chunk in range(0, chunks):
        begin = chunk * size
        length = tl.where(chunk == chunks - 1, rows - begin, size)
        count = 0.0
        mu = tl.zeros((COLUMNS,), tl.float32)
        m2 = tl.zeros((COLUMNS,), tl.float32)
        for k in range(0, per_chunk):
            here = tl.minimum(tl.maximum(length - k * ROWS, 0), ROWS).to(tl.float32)
            at = (tl.cast(chunk, tl.int64) * per_chunk + k) * n + column
            total = count + here
            share = here / tl.maximum(total, 1.0)
            d = tl.load(part_mean + at, there, 0.0) - mu
            mu += d * share
            m2 += tl.where(here > 0, tl.load(part_m2 + at, there, 0.0) + d * d * count * share, 0.0)
            count = total
        tl.store(mean + tl.cast(chunk, tl.int64) * n + column, mu, there)
        tl.store(rstd + tl.cast(chunk, tl.int64) * n + column, 1.0 / tl.sqrt(m2 / count + eps), there)
        run_mean += momentum * (mu + shift - run_mean)
        run_var += momentum * (m2 / (count - 1.0) - run_var)
    if RUNNING:
        tl.store(new_mean + column, run_mean, there)
        tl.store(new_var + column, run_var, there)


@triton.jit
def affine(pointer, mean, rstd, weight, bias, row, column, chunk, n, there, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
           NORM: tl.constexpr):  # fmt: skip
    """(v, xhat, rstd * weight) of a tile: xhat = (x - mean) * rstd, v = xhat * weight + bias."""
    real = column < n
    x = tl.load(pointer + row[:, None] * n + column[None, :], there, 0.0).to(tl.float32)
    scale = tl.full(column.shape, 1.0, tl.float32)
    if NORM:
        r = tl.load(rstd + chunk.to(tl.int64) * n + column, real, 0.0)
        x = (x - tl.load(mean + chunk.to(tl.int64) * n + column, real, 0.0)[None, :]) * r[None, :]
        scale = r
    v = x
    if WEIGHT:
        w = tl.load(weight + column, real, 0.0).to(tl.float32)
        v = v * w[None, :]
        scale = scale * w
    if BIAS:
        v = v + tl.load(bias + column, real, 0.0).to(tl.float32)[None, :]
    return v, x, scale


@triton.jit
def _normalise(x, y, mean, rstd, weight, bias, rows, size, chunks, per_chunk, n, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
               ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    chunk, row, real = block_rows(tl.program_id(0), rows, size, chunks, per_chunk, ROWS)
    there = real[:, None] & (column < n)[None, :]
    v, _, _ = affine(x, mean, rstd, weight, bias, row, column, chunk, n, there, WEIGHT, BIAS, True)
    tl.store(y + row[:, None] * n + column[None, :], v, there)


@triton.jit
def _gradient_sums(grad, x, mean, rstd, s1, s2, rows, size, chunks, per_chunk, n, ROWS: tl.constexpr,
                   COLUMNS: tl.constexpr):  # fmt: skip
    block = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    chunk, row, real = block_rows(block, rows, size, chunks, per_chunk, ROWS)
    there = real[:, None] & (column < n)[None, :]
    _, xhat, _ = affine(x, mean, rstd, x, x, row, column, chunk, n, there, False, False, True)
    g = tl.load(grad + row[:, None] * n + column[None, :], there, 0.0).to(tl.float32)
    at = block.to(tl.int64) * n + column
    tl.store(s1 + at, tl.sum(g, 0), column < n)
    tl.store(s2 + at, tl.sum(tl.where(there, g * xhat, 0.0), 0), column < n)


@triton.jit
def join_sums(part1, part2, s1, s2, dweight, dbias, chunks, per_chunk, n, COLUMNS: tl.constexpr):
    """Sums of each chunk [chunks, n] from those of its blocks, and the parameters' gradients over all of them."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there = column < n
    w = tl.zeros((COLUMNS,), tl.float32)
    b = tl.zeros((COLUMNS,), tl.float32)
    for chunk in range(0, chunks):
        a1 = tl.zeros((COLUMNS,), tl.float32)
        a2 = tl.zeros((COLUMNS,), tl.float32)
        for k in range(0, per_chunk):
            at = (tl.cast(chunk, tl.int64) * per_chunk + k) * n + column
            a1 += tl.load(part1 + at, there, 0.0)
            a2 += tl.load(part2 + at, there, 0.0)
        tl.store(s1 + tl.cast(chunk, tl.int64) * n + column, a1, there)
        tl.store(s2 + tl.cast(chunk, tl.int64) * n + column, a2, there)
        b += a1
        w += a2
    tl.store(dweight + column, w, there)
    tl.store(dbias + column, b, there)


@triton.jit
def _input_gradient(grad, x, mean, rstd, weight, s1, s2, dx, rows, size, chunks, per_chunk, n, WEIGHT: tl.constexpr,
                    TRAINING: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    chunk, row, real = block_rows(tl.program_id(0), rows, size, chunks, per_chunk, ROWS)
    there = real[:, None] & (column < n)[None, :]
    _, xhat, scale = affine(x, mean, rstd, weight, x, row, column, chunk, n, there, WEIGHT, False, True)
    g = tl.load(grad + row[:, None] * n + column[None, :], there, 0.0).to(tl.float32)
    if TRAINING:
        g -= mean_part(xhat, s1, s2, rows, size, chunks, chunk, column, n)
    tl.store(dx + row[:, None] * n + column[None, :], g * scale[None, :], there)


@triton.jit
def mean_part(xhat, s1, s2, rows, size, chunks, chunk, column, n):
    """What the statistics' own dependence on x takes off: (sum dy + xhat * sum(dy * xhat)) / rows of the chunk."""
    at = chunk.to(tl.int64) * n + column
    length = tl.where(chunk == chunks - 1, rows - chunk * size, size).to(tl.float32)
    a1 = tl.load(s1 + at, column < n, 0.0)
    a2 = tl.load(s2 + at, column < n, 0.0)
    return (a1[None, :] + xhat * a2[None, :]) / length


def chunk_statistics(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, linear_bias: Tensor | None, blocks: Blocks,
    training: bool, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """mean, rstd [chunks, n] and the new running statistics ([n], or [0] in evaluation or without them)."""
    n, dtype = x.shape[1], statistics_dtype(x)
    if not training:
        mean = running_mean.to(dtype) - (0 if linear_bias is None else linear_bias.to(dtype))
        rstd = (running_var.to(dtype) + eps).rsqrt()
        return mean.reshape(1, n), rstd.reshape(1, n), x.new_empty(0, dtype=dtype), x.new_empty(0, dtype=dtype)
    running = running_mean is not None
    mean, rstd = (x.new_empty(blocks.chunks, n, dtype=dtype) for _ in range(2))
    new_mean, new_var = (x.new_empty(n if running else 0, dtype=dtype) for _ in range(2))
    grid = blocks.grid(n)
    part_mean, part_m2 = (x.new_empty(grid[0], n, dtype=dtype) for _ in range(2))
    statistics[grid](x, part_mean, part_m2, *blocks.arguments, n, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4)
    join_statistics[(grid[1],)](
        part_mean, part_m2, mean, rstd, running_mean if running else x, running_var if running else x,
        linear_bias if linear_bias is not None else x, new_mean, new_var, *blocks.arguments, n, momentum, eps,
        RUNNING=running, BIAS=linear_bias is not None, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=1,
    )  # fmt: skip
    return mean, rstd, new_mean, new_var


def ghost_batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    linear_bias: Tensor | None, virtual_batch_size: int, training: bool, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(y, mean, rstd, new running mean, new running variance)."""
    x, weight, bias, running_mean, running_var, linear_bias = dense(
        x, weight, bias, running_mean, running_var, linear_bias
    )
    y, n = torch.empty_like(x), x.shape[1]
    blocks = Blocks.of(x.shape[0], virtual_batch_size, training)
    state = chunk_statistics(x, running_mean, running_var, linear_bias, blocks, training, momentum, eps)
    if x.numel():
        _normalise[blocks.grid(n)](
            x, y, state[0], state[1], x if weight is None else weight, x if bias is None else bias, *blocks.arguments, n,
            WEIGHT=weight is not None, BIAS=bias is not None, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4,
        )  # fmt: skip
    return y, *state


def ghost_batch_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor, virtual_batch_size: int, training: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias)."""
    grad, x, weight, mean, rstd = dense(grad, x, weight, mean, rstd)
    n, blocks = x.shape[1], Blocks.of(x.shape[0], virtual_batch_size, training)
    grid = blocks.grid(n)
    part1, part2 = (mean.new_empty(grid[0], n) for _ in range(2))
    s1, s2 = (mean.new_empty(blocks.chunks, n) for _ in range(2))
    dx, dweight, dbias = torch.empty_like(x), mean.new_zeros(n), mean.new_zeros(n)
    if x.numel():
        tiles = {"ROWS": ROWS, "COLUMNS": COLUMNS, "num_warps": 4}
        _gradient_sums[grid](grad, x, mean, rstd, part1, part2, *blocks.arguments, n, **tiles)
        join_sums[(grid[1],)](
            part1, part2, s1, s2, dweight, dbias, blocks.chunks, blocks.per_chunk, n, COLUMNS=COLUMNS, num_warps=1
        )
        _input_gradient[grid](
            grad, x, mean, rstd, x if weight is None else weight, s1, s2, dx, *blocks.arguments, n,
            WEIGHT=weight is not None, TRAINING=training, **tiles,
        )  # fmt: skip
    return dx, dweight, dbias


def pointers(*names: str) -> dict[str, str]:
    """Signature of float32 pointers, for ahead-of-time compilation."""
    return {name: "*fp32" for name in names}


CUT = {name: "i32" for name in ("rows", "size", "chunks", "per_chunk", "n")}
_TILE = {"ROWS": ROWS, "COLUMNS": COLUMNS}
AOT = [
    (statistics, {**pointers("x", "mean", "m2"), **CUT}, _TILE, 4),
    (
        join_statistics,
        {
            **pointers("part_mean", "part_m2", "mean", "rstd", "running_mean", "running_var", "linear_bias", "new_mean", "new_var"),
            **CUT,
            "momentum": "fp32",
            "eps": "fp32",
        },
        {"RUNNING": True, "BIAS": True, **_TILE},
        1,
    ),
    (_normalise, {**pointers("x", "y", "mean", "rstd", "weight", "bias"), **CUT}, {"WEIGHT": True, "BIAS": True, **_TILE}, 4),
    (_gradient_sums, {**pointers("grad", "x", "mean", "rstd", "s1", "s2"), **CUT}, _TILE, 4),
    (
        join_sums,
        {**pointers("part1", "part2", "s1", "s2", "dweight", "dbias"), "chunks": "i32", "per_chunk": "i32", "n": "i32"},
        {"COLUMNS": COLUMNS},
        1,
    ),
    (
        _input_gradient,
        {**pointers("grad", "x", "mean", "rstd", "weight", "s1", "s2", "dx"), **CUT},
        {"WEIGHT": True, "TRAINING": True, **_TILE},
        4,
    ),
]
