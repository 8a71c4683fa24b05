"""How far a kernel may be from the float64 reference: one table for every op.

`relative` bounds the error of an element by its own size, `of_largest` by the largest element of its tensor: a sum
that cancels is as exact as its terms are. A test that needs another tolerance says why where it passes it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Tolerance(NamedTuple):
    """|actual - expected| <= relative * |expected| + of_largest * max |expected| + absolute."""

    relative: float
    of_largest: float
    absolute: float = 0.0


TOLERANCES: dict[torch.dtype, Tolerance] = {
    torch.float64: Tolerance(1e-12, 1e-12),
    torch.float32: Tolerance(1e-5, 2e-6),
    torch.float16: Tolerance(2e-3, 2e-3),
    torch.bfloat16: Tolerance(1.6e-2, 1.6e-2),
}
