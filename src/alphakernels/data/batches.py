"""Three ways to cut a segment into batches, by one vectorised gather a batch, without a Python object a row.

What each draws when it shuffles is what Qlib's training loops of this kind draw, so that the same seed visits the same
rows in the same order: `RowBatches` and `DayBatches` NumPy's legacy stream (`np.random.shuffle` of the rows, or of the
days), `WindowBatches` torch's global stream as a `torch.utils.data.DataLoader` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alphakernels.data.gather import Batch, Gather, sent
from alphakernels.data.windows import Windows

ROWS_AHEAD = 1 << 14  # windows whose days are looked up at once


class RowBatches(Gather):
    """A re-iterable stream of `Batch`; `len` is the number of batches of one pass, `n_rows` the rows of the data.

    Args:
        x, y: features [N, ...] and labels [N, ...] or None.
        batch_size: rows a batch.
        shuffle: the RandomState each pass draws its order from, or None for the rows in order.
        drop_last: leave out the last batch of a pass when it is shorter than `batch_size`, as Qlib's training does.
            Data of less than one full batch is never left out.
        order: int64 [N], the rows in the order in which they are taken, or then shuffled; None for the rows as they stand.
        more: device, data_device, extras, weight: see `Gather`.

    Raises:
        ValueError: a batch size < 1, or as `Gather`.
        TypeError: as `Gather`.
    """

    def __init__(
        self,
        x: np.ndarray | Tensor | Windows,
        y: np.ndarray | Tensor | None = None,
        *,
        batch_size: int,
        shuffle: Any = None,
        drop_last: bool = False,
        order: np.ndarray | None = None,
        **more: Any,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"{type(self).__name__}: batch_size must be at least 1, got {batch_size}")
        super().__init__(x, y, **more)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self._rows = order
        self._as_they_stand = not shuffle and order is None  # so that a batch is a slice

    def __len__(self) -> int:
        full, tail = divmod(self.n_rows, self.batch_size)
        return full if tail == 0 or (self.drop_last and full) else full + 1

    def __iter__(self) -> Iterator[Batch]:
        order = self._order()
        positions = None if self._as_they_stand else self._at_rest(order)
        ahead = max(1, ROWS_AHEAD // self.batch_size)
        days, before = None, 0
        for number in range(len(self)):
            piece = slice(number * self.batch_size, min((number + 1) * self.batch_size, self.n_rows))
            if self._windows is not None and number % ahead == 0:
                days, before = self._windows.positions(order[piece.start : piece.start + ahead * self.batch_size]), piece.start
            yield self._batch(
                order[piece],
                piece if positions is None else positions[piece],
                days=None if days is None else days[piece.start - before : piece.stop - before],
            )

    def _order(self) -> np.ndarray:
        """The rows as this pass takes them: int64 [N]."""
        order = np.arange(self.n_rows) if self._rows is None else self._rows.copy()
        if self.shuffle is not None:
            self.shuffle.shuffle(order)
        return order


class WindowBatches(RowBatches):
    """Batches of time-series windows, x [B, T, D]: see `Windows`. They come instrument by instrument, day by day, as Qlib's TSDataSampler
    lists them: a window and the next have all days in common but one, of which the kernel of a recurrence makes use.

    Args:
        x: the windows. y: labels [N] or None.
        shuffle: visit the windows in random order: that in which a shuffling DataLoader visits the sampler from the same state of
            torch's global stream.
        in_order: draw what `shuffle` draws, but leave the windows in order: for results that do not depend on it.
        batch_size, drop_last, more: as in `RowBatches`.

    A pass draws from torch's global stream what the DataLoader draws: one number, and with `shuffle` another.
    """

    def __init__(
        self, x: Windows, y: np.ndarray | Tensor | None = None, *, shuffle: bool = False, in_order: bool = False, **more: Any
    ) -> None:
        if not isinstance(x, Windows):
            raise TypeError(f"WindowBatches: x must be Windows, as a segment of PanelDataset.windows has, got {type(x).__name__}")
        super().__init__(x, y, shuffle=bool(shuffle), order=x.by_instrument(), **more)
        self._in_order = in_order

    def _order(self) -> np.ndarray:
        order = loader_order(self.n_rows, shuffle=self.shuffle)
        return self._rows if self._in_order else self._rows[order]


def loader_order(rows: int, *, shuffle: bool) -> np.ndarray:
    """The order in which a `torch.utils.data.DataLoader` visits `rows` samples; draws from torch's global stream what it draws."""
    _draw()  # the loader's seed for its workers
    if not shuffle:
        return np.arange(rows)
    generator = torch.Generator()
    generator.manual_seed(_draw())
    return torch.randperm(rows, generator=generator).numpy()


def _draw() -> int:
    return int(torch.empty((), dtype=torch.int64).random_().item())


class DayBatches(Gather):
    """A batch a trading day: x [n, ...] of the n instruments of that day. `Batch.offsets` says where each day begins.

    Args:
        x, y: features [N, ...] (or `Windows`) and labels [N] or None.
        day: [N], the day's number of each row, in any order; rows of a day keep theirs.
        days_per_batch: days a batch.
        shuffle: the RandomState each pass draws the order of the days from, or None for days in order.
        more: device, data_device, extras, weight: see `Gather`.

    In a batch of several days `Batch.weight` makes the weighted mean over its labelled rows the mean over its days of the
    day's mean: days count alike, however many instruments they have.

    Raises:
        ValueError: days_per_batch < 1, or as `Gather`. TypeError: as `Gather`.
    """

    def __init__(
        self,
        x: np.ndarray | Tensor | Windows,
        y: np.ndarray | Tensor | None = None,
        *,
        day: np.ndarray,
        days_per_batch: int = 1,
        shuffle: np.random.RandomState | None = None,
        **more: Any,
    ) -> None:
        if days_per_batch < 1:
            raise ValueError(f"DayBatches: days_per_batch must be at least 1, got {days_per_batch}")
        super().__init__(x, y, **more)
        day = np.asarray(day)
        if day.shape != (self.n_rows,):
            raise ValueError(f"DayBatches: day must have one entry a row of x, {(self.n_rows,)}, got shape {day.shape}")
        self.days_per_batch = days_per_batch
        self.shuffle = shuffle
        # Rows by day: day k has the rows `_rows[_begin[k] : _begin[k + 1]]`.
        self._rows = None if (np.diff(day) >= 0).all() else np.argsort(day, kind="stable")
        ordered = day if self._rows is None else day[self._rows]
        self._begin = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1], True])
        self.n_days = len(self._begin) - 1
        if y is not None and days_per_batch > 1:
            labels = self._by_row["y"].cpu().reshape(self.n_rows, -1)[:, 0].numpy()
            seen = np.isfinite(labels if self._rows is None else labels[self._rows])
            self._labelled = np.add.reduceat(seen, self._begin[:-1])

    def __len__(self) -> int:
        return -(-self.n_days // self.days_per_batch)

    def __iter__(self) -> Iterator[Batch]:
        order = np.arange(self.n_days)
        if self.shuffle is not None:
            self.shuffle.shuffle(order)
        for start in range(0, self.n_days, self.days_per_batch):
            yield self._batch_of_days(order[start : start + self.days_per_batch])

    def _batch_of_days(self, days: np.ndarray) -> Batch:
        begin, end = self._begin[days], self._begin[days + 1]
        offsets = np.zeros(len(days) + 1, np.int64)
        np.cumsum(end - begin, out=offsets[1:])
        if self._rows is None and (begin[1:] == end[:-1]).all():
            where: slice | Tensor = slice(int(begin[0]), int(end[-1]))
            rows = np.arange(where.start, where.stop)
        else:
            rows = np.concatenate([np.arange(a, b) for a, b in zip(begin, end, strict=True)])
            rows = rows if self._rows is None else self._rows[rows]
            where = self._at_rest(rows)
        batch = self._batch(rows, where, offsets=torch.from_numpy(offsets))
        if self.days_per_batch == 1 or batch.y is None:
            return batch
        labelled = self._labelled[days]
        share = labelled.sum() / (np.maximum(labelled, 1) * max((labelled > 0).sum(), 1))  # [days]
        weight = sent(np.repeat(share, end - begin), batch.y.device).to(batch.y.dtype)
        if batch.weight is not None:
            weight *= batch.weight
        return Batch(batch.x, batch.y, batch.rows, batch.extras, weight, batch.offsets)
