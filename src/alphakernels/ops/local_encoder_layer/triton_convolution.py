"""The convolution over time on the GPU: three products of shifted rows, with what it is added to, in one pass and in the layout [B, T, d]
(cuDNN's takes [B, d, T]: two transposed copies)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def convolve(x, weight, bias, added, u, s, tokens, steps, d, BIAS: tl.constexpr, U: tl.constexpr, ROWS: tl.constexpr,
             COLUMNS: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """u = conv(x), where it is wanted, and s = added + u, [tokens, d]; weight is [tap, from, to]."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    here, real = row < tokens, column < d
    step = row % steps
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for tap in range(3):
        inside = here & (step + tap >= 1) & (step + tap <= steps)
        for first in range(0, d, K):
            k = first + tl.arange(0, K)
            shifted = tl.load(x + (row + (tap - 1))[:, None] * d + k[None, :], inside[:, None] & (k < d)[None, :], 0.0)
            w = tl.load(weight + (tap * d + k)[:, None] * d + column[None, :], (k < d)[:, None] & real[None, :], 0.0)
            total = tl.dot(shifted, w, total, input_precision=PRECISION)
    if BIAS:
        total += tl.load(bias + column, real, 0.0).to(tl.float32)[None, :]
    at, there = row[:, None] * d + column[None, :], here[:, None] & real[None, :]
    if U:
        tl.store(u + at, total, there)
    tl.store(s + at, total + tl.load(added + at, there, 0.0).to(tl.float32), there)
