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
TOGETHER = 32  # blocks, or chunks, whose results are joined at once: one after the other, each would wait for its own from memory


def dense(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Contiguous and aligned, as the kernels address them."""
    return tuple(None if t is None else aligned(t) for t in tensors)


def aligned(t: Tensor) -> Tensor:
    """Contiguous, its first element where 16 bytes begin: Triton compiles another program for one that lies elsewhere, which adds up in
    another order, and which nobody can load while a graph is captured."""
    t = t.contiguous()
    return t if t.data_ptr() % 16 == 0 else t.clone()


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
def _join_statistics(part_mean, part_m2, mean, rstd, variance, rows, size, chunks, per_chunk, n, eps, RUNNING: tl.constexpr,
                    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TOGETHER: tl.constexpr):  # fmt: skip
    """Of one chunk, from its blocks; some blocks at once, and these joined in order by Chan's formula. For the running statistics
    also the variance over rows - 1."""
    chunk = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = column < n
    length = tl.where(chunk == chunks - 1, rows - chunk * size, size)
    count = 0.0
    mu = tl.zeros((COLUMNS,), tl.float32)
    m2 = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, per_chunk, TOGETHER):
        block = first + tl.arange(0, TOGETHER)
        here = tl.minimum(tl.maximum(length - block * ROWS, 0), ROWS).to(tl.float32)[:, None]  # rows of each block
        at = (chunk * per_chunk + block)[:, None] * n + column[None, :]
        real = (block < per_chunk)[:, None] & there[None, :]
        means = tl.load(part_mean + at, real, 0.0)
        added = tl.sum(tl.sum(here, 1), 0)  # none, where the last chunk has more blocks than this one
        centre = tl.sum(means * here, 0) / tl.maximum(added, 1.0)
        d = means - centre[None, :]
        centre += tl.sum(d * here, 0) / tl.maximum(added, 1.0)
        within = tl.sum(tl.load(part_m2 + at, real, 0.0) + d * d * here, 0)
        total = count + added
        away = centre - mu
        mu += away * (added / total)
        m2 += within + away * away * (count * added / total)
        count = total
    to = chunk * n + column
    tl.store(mean + to, mu, there)
    tl.store(rstd + to, 1.0 / tl.sqrt(m2 / count + eps), there)
    if RUNNING:
        tl.store(variance + to, m2 / (count - 1.0), there)


@triton.jit
def _update_running(mean, variance, running_mean, running_var, linear_bias, new_mean, new_var, chunks, n, momentum, BIAS: tl.constexpr,
                    COLUMNS: tl.constexpr, TOGETHER: tl.constexpr):  # fmt: skip
    """`running += momentum * (value - running)` chunk after chunk, which is a sum of all with shares that fade by 1 - momentum."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there = column < n
    fade = tl.log2(1.0 - momentum)
    kept = tl.exp2(chunks * fade)
    run_mean = kept * tl.load(running_mean + column, there, 0.0).to(tl.float32)
    run_var = kept * tl.load(running_var + column, there, 0.0).to(tl.float32)
    if BIAS:
        run_mean += (1.0 - kept) * tl.load(linear_bias + column, there, 0.0).to(tl.float32)
    for first in range(0, chunks, TOGETHER):
        chunk = first + tl.arange(0, TOGETHER)
        later = chunks - 1 - chunk
        share = momentum * tl.where(later == 0, 1.0, tl.exp2(later * fade))[:, None]
        at = chunk.to(tl.int64)[:, None] * n + column[None, :]
        real = (later >= 0)[:, None] & there[None, :]
        run_mean += tl.sum(tl.where(real, share * tl.load(mean + at, real, 0.0), 0.0), 0)
        run_var += tl.sum(tl.where(real, share * tl.load(variance + at, real, 0.0), 0.0), 0)
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
def _join_sums(part1, part2, s1, s2, per_chunk, n, COLUMNS: tl.constexpr, TOGETHER: tl.constexpr):
    """Sums of each chunk [chunks, n] from those of its blocks."""
    chunk = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = column < n
    a1 = tl.zeros((COLUMNS,), tl.float32)
    a2 = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, per_chunk, TOGETHER):
        block = first + tl.arange(0, TOGETHER)
        at = (chunk * per_chunk + block)[:, None] * n + column[None, :]
        real = (block < per_chunk)[:, None] & there[None, :]
        a1 += tl.sum(tl.load(part1 + at, real, 0.0), 0)
        a2 += tl.sum(tl.load(part2 + at, real, 0.0), 0)
    tl.store(s1 + chunk * n + column, a1, there)
    tl.store(s2 + chunk * n + column, a2, there)


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
    variance = x.new_empty(blocks.chunks if running else 0, n, dtype=dtype)
    of_chunks, tile = (blocks.chunks, grid[1]), {"COLUMNS": COLUMNS, "TOGETHER": TOGETHER, "num_warps": 4}
    _join_statistics[of_chunks](part_mean, part_m2, mean, rstd, variance, *blocks.arguments, n, eps, RUNNING=running, ROWS=ROWS, **tile)
    if running:
        _update_running[grid[1:]](
            mean, variance, running_mean, running_var, x if linear_bias is None else linear_bias, new_mean, new_var, blocks.chunks, n, momentum,
            BIAS=linear_bias is not None, **tile,
        )  # fmt: skip
    return mean, rstd, new_mean, new_var


def joined(part1: Tensor, part2: Tensor, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Two column sums of each chunk, [chunks, n], from those of its blocks."""
    n = part1.shape[1]
    s1, s2 = (part1.new_empty(blocks.chunks, n) for _ in range(2))
    tile = {"COLUMNS": COLUMNS, "TOGETHER": TOGETHER, "num_warps": 4}
    _join_sums[(blocks.chunks, triton.cdiv(n, COLUMNS))](part1, part2, s1, s2, blocks.per_chunk, n, **tile)
    return s1, s2


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
    dx = torch.empty_like(x)
    if x.numel() == 0:
        return dx, mean.new_zeros(n), mean.new_zeros(n)
    tiles = {"ROWS": ROWS, "COLUMNS": COLUMNS, "num_warps": 4}
    _gradient_sums[grid](grad, x, mean, rstd, part1, part2, *blocks.arguments, n, **tiles)
    s1, s2 = joined(part1, part2, blocks)
    _input_gradient[grid](
        grad, x, mean, rstd, x if weight is None else weight, s1, s2, dx, *blocks.arguments, n,
        WEIGHT=weight is not None, TRAINING=training, **tiles,
    )  # fmt: skip
    return dx, s2.sum(0), s1.sum(0)


def pointers(*names: str) -> dict[str, str]:
    """Signature of float32 pointers, for ahead-of-time compilation."""
    return {name: "*fp32" for name in names}


CUT = {name: "i32" for name in ("rows", "size", "chunks", "per_chunk", "n")}
_TILE = {"ROWS": ROWS, "COLUMNS": COLUMNS}
AOT = [
    (statistics, {**pointers("x", "mean", "m2"), **CUT}, _TILE, 4),
    (
        _join_statistics,
        {**pointers("part_mean", "part_m2", "mean", "rstd", "variance"), **CUT, "eps": "fp32"},
        {"RUNNING": True, "TOGETHER": TOGETHER, **_TILE},
        4,
    ),
    (
        _update_running,
        {
            **pointers("mean", "variance", "running_mean", "running_var", "linear_bias", "new_mean", "new_var"),
            **{"chunks": "i32", "n": "i32", "momentum": "fp32"},
        },
        {"BIAS": True, "COLUMNS": COLUMNS, "TOGETHER": TOGETHER},
        4,
    ),
    (_normalise, {**pointers("x", "y", "mean", "rstd", "weight", "bias"), **CUT}, {"WEIGHT": True, "BIAS": True, **_TILE}, 4),
    (_gradient_sums, {**pointers("grad", "x", "mean", "rstd", "s1", "s2"), **CUT}, _TILE, 4),
    (
        _join_sums,
        {**pointers("part1", "part2", "s1", "s2"), "per_chunk": "i32", "n": "i32"},
        {"COLUMNS": COLUMNS, "TOGETHER": TOGETHER},
        4,
    ),
    (
        _input_gradient,
        {**pointers("grad", "x", "mean", "rstd", "weight", "s1", "s2", "dx"), **CUT},
        {"WEIGHT": True, "TRAINING": True, **_TILE},
        4,
    ),
]
