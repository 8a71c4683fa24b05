"""Time-series windows: a sample is a row and the days before it, found by index arithmetic and gathered a batch at a time.

The windows are those of Qlib's TSDataSampler (qlib.data.dataset) with fillna_type="ffill+bfill": they count the days of
the panel, a day on which the instrument has no row takes its row before (ffill), and days before its first row in the
window take that one (bfill). Whole rows are filled, never single values: a NaN within a row stays.

Beyond the data there are 8 bytes a row: an order that puts each instrument's rows side by side, and its inverse. In this
order a window without gaps is a run, and windows with gaps are told from it by their first day.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view

from alphakernels.data.index import PanelIndex

if TYPE_CHECKING:
    from alphakernels.data.panel import PanelDataset, Segment, SegmentLike


@dataclass(frozen=True)
class Histories:
    """Where an instrument's rows lie in a panel sorted by day.

    Attributes:
        index: the panel's keys.
        order: [M], the rows by instrument, then day; int32 (int64 from 2^31 rows on).
        rank: [M], the place of each row in `order`.
    """

    index: PanelIndex
    order: np.ndarray
    rank: np.ndarray

    @classmethod
    def of(cls, index: PanelIndex) -> Histories:
        kind = np.int32 if len(index) < 2**31 else np.int64
        order = np.argsort(index.instrument, kind="stable").astype(kind)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order), dtype=kind)
        return cls(index, order, rank)

    def windows(self, rows: np.ndarray, step_len: int) -> np.ndarray:
        """The rows at each step of the windows that end on `rows` [B]: [B, T] of `order`'s type, oldest first."""
        day, instrument = self.index.day, self.index.instrument
        began = self.rank[rows] - (step_len - 1)  # places in `order`
        if len(self.order) < step_len:  # nor is any window a run of it
            return self._filled(began, step_len)
        found = sliding_window_view(self.order, step_len)[np.maximum(began, 0)]
        first, last = found[:, 0], found[:, -1]
        whole = (began >= 0) & (instrument[first] == instrument[last]) & (day[last] - day[first] == step_len - 1)
        gaps = np.flatnonzero(~whole)
        if len(gaps):
            found[gaps] = self._filled(began[gaps], step_len)
        return found

    def _filled(self, began: np.ndarray, step_len: int) -> np.ndarray:
        """The same of runs with gaps, which would begin at these places: each day's row put in its place, ffill, then bfill."""
        run = began[:, None] + np.arange(step_len)
        found = self.order[np.maximum(run, 0)]
        count = len(found)
        day, instrument = self.index.day[found], self.index.instrument[found]
        place = day - day[:, -1:] + step_len - 1
        valid = (run >= 0) & (instrument == instrument[:, -1:]) & (place >= 0)
        latest = np.full(found.shape, -1)  # which of the run's rows is the latest known on each day
        sample, step = np.nonzero(valid)
        latest[sample, place[sample, step]] = step
        np.maximum.accumulate(latest, axis=1, out=latest)
        latest = np.where(latest < 0, valid.argmax(axis=1)[:, None], latest)
        return found[np.arange(count)[:, None], latest]


class Windows:
    """Windows over consecutive rows of a panel: like an array [N, T, D] that is made piece by piece.

    `windows[rows]` gives the windows of some rows, [B, T, D], a copy; `len` is N.

    Args:
        source: features, sorted by day; nothing is copied.
        histories: of the whole panel.
        step_len: T, days a window.
        rows: which of the panel's rows have a window here (they may reach back to others).
        first: the panel's row that `source` starts with.
    """

    def __init__(self, source: np.ndarray, histories: Histories, step_len: int, rows: slice, first: int = 0) -> None:
        self.source = source
        self.step_len = step_len
        self._histories = histories
        self._start, self._stop, _ = rows.indices(len(histories.order))
        self._first = first

    def __len__(self) -> int:
        return self._stop - self._start

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self), self.step_len, self.source.shape[1]

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """Which row of `source` stands at each step of the windows of some rows: integers [B, T], oldest first."""
        found = self._histories.windows(np.asarray(rows) + self._start, self.step_len)
        return found if self._first == 0 else found - self._first

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        return self.source[self.positions(rows)]

    def reach(self) -> Windows:
        """The same windows over a view of `source`: only the rows that they reach."""
        day = self._histories.index.day
        first = int(np.searchsorted(day, day[self._start] - (self.step_len - 1))) if len(self) else self._start
        return self.with_source(self.source[first - self._first : self._stop - self._first], first)

    def with_source(self, source: np.ndarray, first: int | None = None) -> Windows:
        """The same windows over other features, of the same rows unless `first` says from where on."""
        first = self._first if first is None else first
        return Windows(source, self._histories, self.step_len, slice(self._start, self._stop), first)

    def by_instrument(self) -> np.ndarray:
        """The order [N] that puts each instrument's windows side by side, by day."""
        return np.argsort(self._histories.rank[self._start : self._stop], kind="stable")


class GivenWindows(Windows):
    """Windows that came as an array [N, T, D], each with days of its own.

    Args:
        windows: [N, T, D], of the rows of `index`.
        index: their N keys.
    """

    def __init__(self, windows: np.ndarray, index: PanelIndex) -> None:
        self.source = windows.reshape(-1, windows.shape[2])  # [N * T, D]
        self.step_len = windows.shape[1]
        self._start, self._stop, self._first = 0, len(windows), 0
        self._index = index

    def positions(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(rows, dtype=np.int64)[:, None] * self.step_len + np.arange(self.step_len)

    def reach(self) -> Windows:
        return self

    def with_source(self, source: np.ndarray, first: int | None = None) -> Windows:
        return GivenWindows(source.reshape(len(self), self.step_len, source.shape[1]), self._index)

    def by_instrument(self) -> np.ndarray:
        return np.lexsort((self._index.day, self._index.instrument))


class ChosenWindows(Windows):
    """Some of the windows of others; the history they reach back to is whole.

    Args:
        windows: the others.
        chosen: int64 [n], rising, which of them.
    """

    def __init__(self, windows: Windows, chosen: np.ndarray) -> None:
        self._windows, self._chosen = windows, chosen
        self.source, self.step_len = windows.source, windows.step_len

    def __len__(self) -> int:
        return len(self._chosen)

    def positions(self, rows: np.ndarray) -> np.ndarray:
        return self._windows.positions(self._chosen[rows])

    def reach(self) -> Windows:
        return ChosenWindows(self._windows.reach(), self._chosen)

    def with_source(self, source: np.ndarray, first: int | None = None) -> Windows:
        return ChosenWindows(self._windows.with_source(source, first), self._chosen)

    def by_instrument(self) -> np.ndarray:
        place = np.full(len(self._windows), -1)
        place[self._chosen] = np.arange(len(self._chosen))
        order = place[self._windows.by_instrument()]
        return order[order >= 0]


class WindowDataset:
    """A panel seen as time series: its segments' features are `Windows`. Made by `PanelDataset.windows(step_len)`.

    A segment's first windows reach back into the days before it, as Qlib's TSDatasetH lets them.

    Attributes:
        panel: the `PanelDataset`, of which nothing is copied.
        step_len: T, days a window.
    """

    def __init__(self, panel: PanelDataset, step_len: int, histories: Histories | None = None) -> None:
        if not isinstance(step_len, Integral) or isinstance(step_len, bool) or step_len < 1:
            raise ValueError(f"windows: step_len must be an integer of at least 1, got {step_len!r}")
        self.panel = panel
        self.step_len = int(step_len)
        self._histories = Histories.of(panel.panel_index) if histories is None else histories

    def __len__(self) -> int:
        return len(self.panel)

    def __repr__(self) -> str:
        return f"{self.panel!r} in windows of {self.step_len} days"

    @property
    def features(self) -> tuple[str, ...]:
        return self.panel.features

    @property
    def segments(self) -> dict[str, Any]:
        return self.panel.segments

    @property
    def days(self) -> pd.DatetimeIndex:
        return self.panel.days

    @property
    def instruments(self) -> pd.Index:
        return self.panel.instruments

    def segment(self, segment: SegmentLike) -> Segment:
        """As `PanelDataset.segment`, with `Windows` [N, T, D] for features."""
        windows = Windows(self.panel.x, self._histories, self.step_len, self.panel.segment_rows(segment))
        return self.panel.segment(segment).with_features(windows.reach())

    def with_segments(self, segments: Mapping[str, Any] | None = None, **more: Any) -> WindowDataset:
        """The same windows under other segments: see `PanelDataset.with_segments`."""
        return WindowDataset(self.panel.with_segments(segments, **more), self.step_len, self._histories)
