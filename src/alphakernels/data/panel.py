"""PanelDataset: features and label of many instruments over many days, in one float32 copy, cut into named segments.

The rows are sorted by (datetime, instrument), as Qlib's handlers leave them, so that a segment of days is a slice: what
a model trains on is a view of the dataset, not a copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from alphakernels.data.finite import check_features_finite, check_label
from alphakernels.data.frames import columns_of, read_float32
from alphakernels.data.index import SHOWN, PanelIndex, as_days
from alphakernels.data.normalise import RobustZScore, cs_rank_norm, cs_zscore
from alphakernels.data.segments import Bound, check_segments, segment_days
from alphakernels.data.windows import ChosenWindows, WindowDataset, Windows

SegmentLike = str | slice | tuple[Bound, Bound]


@dataclass(frozen=True)
class Segment:
    """The rows of a range of days: views of the dataset's arrays.

    Attributes:
        name: as asked for.
        x: features [N, D], float32; in a dataset of windows, `Windows` [N, T, D].
        y: label [N], float32, NaN where not observed; None in a dataset without label.
        index: (datetime, instrument) of the N rows.
        features: the D features' names.
    """

    name: str
    x: np.ndarray | Windows
    y: np.ndarray | None
    index: pd.MultiIndex
    features: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.x)

    def with_features(self, x: np.ndarray | Windows) -> Segment:
        """The same rows with other features."""
        return replace(self, x=x)

    def chosen(self, rows: np.ndarray) -> Segment:
        """Some of its rows, by their positions, int64 [n], rising."""
        x = ChosenWindows(self.x, rows) if isinstance(self.x, Windows) else self.x[rows]
        return replace(self, x=x, y=None if self.y is None else self.y[rows], index=self.index[rows])

    def label_series(self) -> pd.Series:
        """The label as a Series, for metrics and plots.

        Raises:
            ValueError: the dataset has no label.
        """
        if self.y is None:
            raise ValueError(f"segment {self.name!r} has no label: the dataset was made with label=None")
        return pd.Series(self.y, index=self.index, name="label")

    def check_finite(self) -> None:
        """Raises a ValueError which names the feature columns that hold NaN or infinity."""
        x = self.x.source if isinstance(self.x, Windows) else self.x
        check_features_finite(x, self.features, where=f"segment {self.name!r}")

    def check_label(self) -> None:
        """Raises a ValueError where the label is missing, NaN in every row, or infinite in some."""
        self.label_series()
        check_label(self.y, where=f"segment {self.name!r}")


class PanelDataset:
    """Features and label by (datetime, instrument), with named segments. Never changed once made.

    Args:
        frame: rows indexed by (datetime, instrument), in any order; numeric columns. Qlib's two-level columns
            ("feature", name) and ("label", name) are taken too. It is copied once, as float32, and not kept.
        label: the label's column; None for a dataset to predict on.
        segments: (first day, last day) by name, both included, None for an open end; dates as text,
            `datetime.date` or Timestamp. "2014" as a last day means the end of 2014.
        features: the columns to use, in this order; None means all but the label.

    Raises:
        TypeError: no frame.
        ValueError: an index that is not (datetime, instrument), duplicate keys, no rows, missing or non-numeric
            columns, or a segment that is not a pair of dates; each names what is wrong.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        *,
        label: str | None = "label",
        segments: Mapping[str, Any] | None = None,
        features: Sequence[str] | None = None,
    ) -> None:
        if not isinstance(frame, pd.DataFrame):
            raise TypeError(
                f"PanelDataset: frame must be a DataFrame indexed by (datetime, instrument), got {type(frame).__name__}; "
                "PanelDataset.from_arrays takes arrays"
            )
        if len(frame) == 0:
            raise ValueError("PanelDataset: the frame must have at least one row, got 0")
        index = PanelIndex.from_pandas(frame.index)  # before the columns, among which a frame without index has its keys
        feature_columns, label_column = columns_of(frame, label, features)
        order = index.sorting()
        self.x = read_float32(frame, [position for _, position in feature_columns], order)
        self.y = None if label_column is None else read_float32(frame, [label_column], order)[:, 0]
        self.panel_index = index if order is None else index.take(order)
        self.features = tuple(name for name, _ in feature_columns)
        self.segments = check_segments(segments or {}, self.days.tz)

    @classmethod
    def from_arrays(
        cls,
        features: np.ndarray,
        label: np.ndarray | None = None,
        *,
        index: pd.MultiIndex | None = None,
        days: Sequence[Any] | pd.DatetimeIndex | None = None,
        instruments: Sequence[Any] | None = None,
        names: Sequence[str] | None = None,
        segments: Mapping[str, Any] | None = None,
    ) -> PanelDataset:
        """A dataset from arrays; float32 arrays in the right order are used as they are, without a copy.

        Args:
            features: [N, D] with `index`, or [T, S, D] with `days` (T) and `instruments` (S). In the second form an
                instrument whose features are all NaN on a day has no row.
            label: [N] or [T, S]; None for a dataset to predict on.
            index: the (datetime, instrument) MultiIndex of N rows, in any order.
            days, instruments: the dates and names of the first two axes, in any order, each once.
            names: the D features' names; F0, F1, ... where None.
            segments: as in the class.

        Raises:
            ValueError: shapes that do not fit each other, or what the class raises for the same fault.
        """
        features = _real("features", features)
        keys = _keys_of(features.shape, index, days, instruments)
        x = np.asarray(features.reshape(-1, features.shape[-1]), dtype=np.float32)
        y = None
        if label is not None:
            label = _real("label", label)
            if label.shape != features.shape[:-1]:
                raise ValueError(
                    f"from_arrays: label must have the features' shape without the last axis "
                    f"{features.shape[:-1]}, got {label.shape}"
                )
            y = np.asarray(label.reshape(-1), dtype=np.float32)
        names = tuple(f"F{j}" for j in range(x.shape[1])) if names is None else tuple(str(name) for name in names)
        if len(names) != x.shape[1] or len(set(names)) != len(names):
            raise ValueError(f"from_arrays: names must be {x.shape[1]} different names, got {len(names)}: {names}")

        order = keys.sorting()
        if features.ndim == 3:
            observed = ~np.isnan(x).all(axis=1)
            if not observed.all():
                order = np.flatnonzero(observed) if order is None else order[observed[order]]
        if order is not None:
            x, y, keys = x[order], None if y is None else y[order], keys.take(order)
        if len(x) == 0:
            raise ValueError(f"from_arrays: features must have at least one row, got shape {features.shape}")
        return cls._of(np.ascontiguousarray(x), y, keys, names, segments or {})

    @classmethod
    def _of(
        cls,
        x: np.ndarray,
        y: np.ndarray | None,
        panel_index: PanelIndex,
        features: tuple[str, ...],
        segments: Mapping[str, Any],
    ) -> PanelDataset:
        """From parts that are sorted, float32 and checked."""
        dataset = cls.__new__(cls)
        dataset.x, dataset.y, dataset.panel_index, dataset.features = x, y, panel_index, features
        dataset.segments = check_segments(segments, panel_index.days.tz)
        return dataset

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return (
            f"PanelDataset({len(self)} rows, {len(self.features)} features, {len(self.instruments)} instruments, "
            f"{len(self.days)} days from {self.days[0]:%Y-%m-%d} to {self.days[-1]:%Y-%m-%d}, "
            f"{'no label' if self.y is None else 'label'}, segments: {', '.join(self.segments) or 'none'})"
        )

    @property
    def days(self) -> pd.DatetimeIndex:
        """The days that have a row, sorted."""
        return self.panel_index.days

    @property
    def instruments(self) -> pd.Index:
        """The instruments that have a row, sorted."""
        return self.panel_index.instruments

    @property
    def index(self) -> pd.MultiIndex:
        """(datetime, instrument) of all rows."""
        return self.panel_index.to_pandas()

    @property
    def frame(self) -> pd.DataFrame:
        """All rows as a float32 DataFrame: the features, then "label" if there is one. The features are a view."""
        frame = pd.DataFrame(self.x, index=self.index, columns=list(self.features), copy=False)
        return frame if self.y is None else frame.assign(label=self.y)

    def segment(self, segment: SegmentLike) -> Segment:
        """The rows of a named segment, or of a range of days (a slice or pair of dates, both ends included).

        Raises:
            ValueError: an unknown name (the message lists the known ones), or no row lies in the segment (the
                message prints the range of the data).
        """
        rows = self.segment_rows(segment)
        name = segment if isinstance(segment, str) else "as asked"
        y = None if self.y is None else self.y[rows]
        return Segment(name, self.x[rows], y, self.panel_index.to_pandas(rows), self.features)

    def segment_rows(self, segment: SegmentLike) -> slice:
        """Where the rows of a segment lie: see `segment`."""
        if isinstance(segment, str):
            if segment not in self.segments:
                known = ", ".join(map(repr, self.segments)) or "none: pass segments=, or use with_segments"
                raise ValueError(f"no segment {segment!r} in the dataset; known segments: {known}")
            name, bounds = segment, self.segments[segment]
        else:
            name = "as asked"
            bounds = check_segments({name: segment}, self.days.tz)[name]
        span = segment_days(self.days, *bounds, name)
        start, stop = np.searchsorted(self.panel_index.day, [span.start, span.stop])
        return slice(int(start), int(stop))

    def windows(self, step_len: int) -> WindowDataset:
        """The panel as time series: a sample is a row and the `step_len` - 1 days before it, [T, D].

        The windows are those of Qlib's TSDatasetH with fillna_type="ffill+bfill": see `alphakernels.data.windows`.
        """
        return WindowDataset(self, step_len)

    def check_finite(self, segment: SegmentLike, *, label: bool = False) -> None:
        """Raises a ValueError naming the feature columns of a segment that hold NaN or infinity.

        With `label`, also where the segment's label is NaN in every row, or infinite in some.
        """
        rows = self.segment(segment)
        rows.check_finite()
        if label:
            rows.check_label()

    def with_segments(self, segments: Mapping[str, Any] | None = None, **more: Any) -> PanelDataset:
        """The same data under other segments: `with_segments(train=("2008", "2014"), test=("2015", None))`."""
        return self._of(self.x, self.y, self.panel_index, self.features, {**(segments or {}), **more})

    def robust_zscore(
        self, fit: SegmentLike | RobustZScore = "train", *, clip: float | None = 3.0
    ) -> PanelDataset:
        """Features by `RobustZScore`, fit on one segment alone, or already fitted (to predict on new data)."""
        scaler = fit if isinstance(fit, RobustZScore) else RobustZScore(clip).fit(self.segment(fit).x)
        return self._of(scaler.transform(self.x), self.y, self.panel_index, self.features, self.segments)

    def cs_rank_norm(self) -> PanelDataset:
        """The label by its rank among the day's instruments: see `normalise.cs_rank_norm`."""
        return self._with_label(cs_rank_norm)

    def cs_zscore(self) -> PanelDataset:
        """The label in standard deviations of its day: see `normalise.cs_zscore`."""
        return self._with_label(cs_zscore)

    def _with_label(self, normalise: Any) -> PanelDataset:
        if self.y is None:
            raise ValueError("the dataset has no label to normalise: it was made with label=None")
        y = normalise(pd.Series(self.y, index=self.index)).to_numpy(np.float32)
        return self._of(self.x, y, self.panel_index, self.features, self.segments)


def _real(name: str, values: Any) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype.kind == "c":
        raise ValueError(f"from_arrays: {name} must be real numbers, got {values.dtype}; pass their .real, or their absolute values")
    return values


def _keys_of(
    shape: tuple[int, ...],
    index: pd.MultiIndex | None,
    days: Sequence[Any] | pd.DatetimeIndex | None,
    instruments: Sequence[Any] | None,
) -> PanelIndex:
    """The keys of the rows of features of this shape, in the arrays' order."""
    if len(shape) == 2:
        if index is None or len(index) != shape[0]:
            got = "None" if index is None else f"{len(index)} rows"
            raise ValueError(f"from_arrays: features {shape} need an index of {shape[0]} rows, got {got}")
        return PanelIndex.from_pandas(index)
    if len(shape) != 3:
        raise ValueError(f"from_arrays: features must be [N, D] or [T, S, D], got shape {shape}")
    axes = []
    for name, values, size in (("days", days, shape[0]), ("instruments", instruments, shape[1])):
        if values is None or len(values) != size:
            got = "None" if values is None else len(values)
            raise ValueError(f"from_arrays: features {shape} need {size} {name}, got {got}")
        axis = pd.Index(values)
        if not axis.is_unique:
            twice = list(axis[axis.duplicated()].unique()[:SHOWN])
            raise ValueError(f"from_arrays: {name} must each appear once, got more than one of {twice}")
        axes.append(axis)
    return PanelIndex.from_pandas(pd.MultiIndex.from_product([as_days(axes[0]), axes[1]]))
