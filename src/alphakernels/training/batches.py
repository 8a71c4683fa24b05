"""What the loop asks of data: a sized, re-iterable stream of batches. `alphakernels.data.RowBatches` is one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from torch import Tensor


class BatchLike(Protocol):
    """`x` [B, ..., D] features, `y` [B] labels or None, `rows` [B] positions in the segment."""

    x: Tensor
    y: Tensor | None
    rows: np.ndarray


class Batches(Protocol):
    """Iterating twice gives two passes; `len` is the number of batches of a pass."""

    def __iter__(self) -> Iterator[BatchLike]: ...

    def __len__(self) -> int: ...
