"""Weighted sums of the first k and of the last n - k rows of a sorted list on the GPU, for every k at once: csrc/cpu/sorted_sums.h.

The list is cut into chunks. One kernel sums each chunk, one adds the sums of a day up from both ends, one goes through the chunks
again and leaves all sums in memory, [N, H + 1] for either end; the last column sums `extra`, a number a row. Nothing is subtracted.
Sums are of doubles, as on the CPU: the gradients are differences of them that cancel. At some twenty operations for each of N H
numbers that costs little even where a GPU has few units for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._days_triton import Days, day_range, day_tile, first_slot
from ..ghost_batch_norm.triton import pointers

CHUNK = 64  # rows of a chunk
COLUMNS = 32


@triton.jit
def _values(rows_of, order, extra, place, there, column, hidden, EXTRA: tl.constexpr):
    """[places, columns] of the rows in order, with the extra number as column `hidden`."""
    row = tl.load(order + place, there, 0).to(tl.int64)
    at = row[:, None] * hidden + column[None, :]
    value = tl.load(rows_of + at, there[:, None] & (column < hidden)[None, :], 0.0).to(tl.float64)
    more = tl.where(there, 1.0, 0.0).to(tl.float64)
    if EXTRA:
        more = tl.load(extra + place, there, 0.0).to(tl.float64)
    return tl.where((column == hidden)[None, :], more[:, None], value)


@triton.jit
def _sum_chunks(rows_of, order, before, after, extra, offsets, sums, days, rows, hidden, EXTRA: tl.constexpr, MANY: tl.constexpr,
                CHUNK: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """sums [slots, 2, H + 1]."""
    _day, _begin, end, start = day_tile(offsets, days, rows, CHUNK, MANY)
    place = start + tl.arange(0, CHUNK)
    there = place < end
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    value = _values(rows_of, order, extra, place, there, column, hidden, EXTRA)
    first = tl.load(before + place, there, 0.0).to(tl.float64)
    last = tl.load(after + place, there, 0.0).to(tl.float64)
    at = tl.program_id(0).to(tl.int64) * 2 * (hidden + 1) + column
    tl.store(sums + at, tl.sum(first[:, None] * value, 0), column <= hidden)
    tl.store(sums + at + hidden + 1, tl.sum(last[:, None] * value, 0), column <= hidden)


@triton.jit
def _add_up(sums, offsets, rows, hidden, MANY: tl.constexpr, CHUNK: tl.constexpr, COLUMNS: tl.constexpr):
    """A day's sums in place: of each chunk and all before it, of each chunk and all after it."""
    day = tl.program_id(0).to(tl.int64)
    begin, end = day_range(offsets, day, rows, MANY)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    slot = first_slot(begin, day, CHUNK)
    count = tl.cdiv(end - begin, CHUNK)
    width = hidden + 1
    carry = tl.zeros((COLUMNS,), tl.float64)
    for low in range(0, count, CHUNK):
        chunk = low + tl.arange(0, CHUNK)
        there = (chunk < count)[:, None] & (column < width)[None, :]
        at = (slot + chunk)[:, None] * 2 * width + column[None, :]
        value = tl.load(sums + at, there, 0.0)
        tl.store(sums + at, carry[None, :] + tl.cumsum(value, 0), there)
        carry += tl.sum(value, 0)
    carry = tl.zeros((COLUMNS,), tl.float64)
    for low in range(0, count, CHUNK):
        chunk = count - 1 - low - tl.arange(0, CHUNK)
        there = (chunk >= 0)[:, None] & (column < width)[None, :]
        at = ((slot + chunk)[:, None] * 2 + 1) * width + column[None, :]
        value = tl.load(sums + at, there, 0.0)
        tl.store(sums + at, carry[None, :] + tl.cumsum(value, 0), there)
        carry += tl.sum(value, 0)


@triton.jit
def _spread(rows_of, order, before, after, extra, offsets, sums, head, tail, days, rows, hidden, EXTRA: tl.constexpr,
            MANY: tl.constexpr, CHUNK: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """head[p]: the sum up to place p and with it; tail[p]: from place p on."""
    _day, begin, end, start = day_tile(offsets, days, rows, CHUNK, MANY)
    place = start + tl.arange(0, CHUNK)
    there = place < end
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    width = hidden + 1
    value = _values(rows_of, order, extra, place, there, column, hidden, EXTRA)
    first = tl.load(before + place, there, 0.0).to(tl.float64)
    last = tl.load(after + place, there, 0.0).to(tl.float64)
    slot = tl.program_id(0).to(tl.int64) * 2
    ahead = tl.load(sums + (slot - 2) * width + column, column < tl.where(start > begin, width, 0), 0.0)
    behind = tl.load(sums + (slot + 3) * width + column, column < tl.where(start + CHUNK < end, width, 0), 0.0)
    at = place[:, None] * width + column[None, :]
    mask = there[:, None] & (column < width)[None, :]
    tl.store(head + at, ahead[None, :] + tl.cumsum(first[:, None] * value, 0), mask)
    tl.store(tail + at, behind[None, :] + tl.cumsum(last[:, None] * value, 0, reverse=True), mask)


@dataclass(frozen=True)
class SortedSums:
    """head, tail [N, H + 1]: of the places up to p, and from p on, of p's day."""

    head: Tensor
    tail: Tensor

    @classmethod
    def of(cls, rows: Tensor, order: Tensor, before: Tensor, after: Tensor, extra: Tensor | None, days: Days) -> SortedSums:
        """rows [N, H] in their own order, the rest by place; `extra` None for ones."""
        n, hidden = rows.shape
        width = hidden + 1
        slots, columns = days.slots(CHUNK), triton.cdiv(width, COLUMNS)
        sums = rows.new_empty(slots, 2, width, dtype=torch.float64)
        head, tail = (rows.new_empty(n, width, dtype=torch.float64) for _ in range(2))
        offsets = days.given(rows)
        common = {"MANY": days.many, "CHUNK": CHUNK, "COLUMNS": COLUMNS}
        listed = (rows, order, before, after, before if extra is None else extra, offsets)
        _sum_chunks[(slots, columns)](*listed, sums, days.count, n, hidden, EXTRA=extra is not None, **common)
        _add_up[(days.count, columns)](sums, offsets, n, hidden, **common)
        _spread[(slots, columns)](*listed, sums, head, tail, days.count, n, hidden, EXTRA=extra is not None, **common)
        return cls(head, tail)


_TILE = {"MANY": True, "CHUNK": CHUNK, "COLUMNS": COLUMNS}
_LIST = {**pointers("rows_of", "before", "after", "extra"), "sums": "*fp64", "order": "*i32", "offsets": "*i64"}
_SIZES = {"days": "i32", "rows": "i32", "hidden": "i32"}
AOT = [
    (_sum_chunks, {**_LIST, **_SIZES}, {"EXTRA": False, **_TILE}, 4),
    (_add_up, {"sums": "*fp64", "offsets": "*i64", "rows": "i32", "hidden": "i32"}, _TILE, 4),
    (_spread, {**_LIST, "head": "*fp64", "tail": "*fp64", **_SIZES}, {"EXTRA": True, **_TILE}, 4),
]
