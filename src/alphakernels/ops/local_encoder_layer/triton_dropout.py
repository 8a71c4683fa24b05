"""Dropout's factors for a tile inside a Triton kernel: Triton's Philox is the generator of `ops/_random.py`, four columns a counter."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dropout_tile(seed, threshold, keep_scale, row, first, columns, STREAM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """[ROWS, COLUMNS] of 0 or keep_scale, of the rows `row` (int64) and the columns from `first`, a multiple of four, out of `columns`."""
    quad = first // 4 + tl.arange(0, COLUMNS // 4)
    counter = (STREAM << 48) + row[:, None] * ((columns + 3) // 4) + quad[None, :]
    a, b, c, d = tl.randint4x(seed, counter)
    words = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (ROWS, COLUMNS))  # a, b, c, d take turns
    return tl.where(words.to(tl.uint32, bitcast=True) >= tl.cast(threshold, tl.uint32), keep_scale, 0.0)
