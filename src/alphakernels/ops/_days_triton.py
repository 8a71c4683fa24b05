"""Several days in one call, on the GPU: tiles of rows that no two days share, found from `offsets` by the programs themselves.

Day d's tiles of SIZE rows start at slot offsets[d] // SIZE + d. The days need no more slots than that leaves them, and nobody has to
count tiles on the host, which would wait for the device; a slot too many is a program that ends at once. A day's tiles start at its
first row, so that its sums are the same bits whatever other days go along.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Days:
    """How the kernels are told of the days of `rows` rows."""

    rows: int
    offsets: Tensor | None

    @property
    def count(self) -> int:
        return 1 if self.offsets is None else self.offsets.shape[0] - 1

    def slots(self, size: int) -> int:
        """Programs that cut the days into tiles of `size` rows."""
        return triton.cdiv(self.rows, size) if self.offsets is None else self.rows // size + self.count

    def given(self, dummy: Tensor) -> Tensor:
        """The offsets, or a pointer that is not read."""
        return dummy if self.offsets is None else self.offsets.contiguous()

    @property
    def many(self) -> bool:
        return self.offsets is not None


@triton.jit
def day_range(offsets, day, rows, MANY: tl.constexpr):
    """Rows [begin, end) of a day; within [0, rows) whatever the offsets are, which nobody has checked on a GPU."""
    begin = day * 0
    end = begin + rows
    if MANY:
        begin = tl.minimum(tl.maximum(tl.load(offsets + day), 0), rows)
        end = tl.minimum(tl.load(offsets + day + 1), rows)
    return begin, end


@triton.jit
def first_slot(begin, day, SIZE: tl.constexpr):
    """Slot of a day's first tile, the day beginning at row `begin`."""
    return begin // SIZE + day


@triton.jit
def day_tile(offsets, days, rows, SIZE: tl.constexpr, MANY: tl.constexpr):
    """(day, its rows [begin, end), first row of the tile) of the slot program_id(0), all int64; none of the tile where start >= end."""
    slot = tl.program_id(0).to(tl.int64)
    day = slot * 0
    if MANY:
        above = day + days
        while day + 1 < above:  # the last day whose first slot is not beyond this one
            middle = (day + above) // 2
            within = first_slot(tl.load(offsets + middle), middle, SIZE) <= slot
            day = tl.where(within, middle, day)
            above = tl.where(within, above, middle)
    begin, end = day_range(offsets, day, rows, MANY)
    start = begin + (slot - first_slot(begin, day, SIZE)) * SIZE
    return day, begin, tl.where(start < begin, start, end), start
