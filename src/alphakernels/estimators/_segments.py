"""What must hold of a segment before a model sees it, told in the names of its columns."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from alphakernels.data import PanelIndex, Windows, check_features_finite, check_label

# Rows looked at in one go, so that checking a large segment makes no copy of its size.
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Rows:
    """A checked segment: x [N, D] float32 or `Windows` [N, T, D], y [N] float32 or None, index (datetime, instrument).

    `weight`, float32 [N] or None, is how much each row counts in the training.
    """

    x: np.ndarray | Windows
    y: np.ndarray | None
    index: pd.MultiIndex
    weight: np.ndarray | None = None

    @property
    def step_len(self) -> int | None:
        """Days a window, None for rows."""
        return self.x.step_len if isinstance(self.x, Windows) else None

    def days(self) -> np.ndarray:
        """The day's number of each row: int64 [N]."""
        return PanelIndex.from_pandas(self.index).day

    def labelled(self) -> Rows:
        """The rows which have a label."""
        keep = ~np.isnan(self.y)
        if keep.all():
            return self
        weight = None if self.weight is None else self.weight[keep]
        return Rows(self.x[np.flatnonzero(keep)], self.y[keep], self.index[keep], weight)

    def digest(self) -> str:
        """Tells data apart, for the fingerprint of a run."""
        total = 0
        for array in (self.x.source if isinstance(self.x, Windows) else self.x, self.y, self.weight):
            if array is not None:
                for block in _blocks(array):
                    total = zlib.crc32(np.ascontiguousarray(block), total)
        windows = "" if self.step_len is None else f"windows of {self.step_len}, "
        return f"{len(self.x)} rows, {windows}crc32 {total:08x}"


def load_rows(dataset: Any, name: str, *, label: bool, missing: str, fill: str) -> Rows:
    """The segment `name` of a dataset, checked.

    Args:
        label: whether labels are needed.
        missing: "error" refuses NaN in the features, "fill" replaces it.
        fill: with "mean" or "zero". The mean is the segment's own; a column without any value gets zero.

    Raises:
        ValueError: no rows, no or infinite labels, NaN (unless filled) or infinity in the features: names the columns.
    """
    segment = dataset.segment(name)
    x, y, where = segment.x, segment.y, f"segment {name!r}"
    if len(x) == 0:
        raise ValueError(f"{where} must have at least one row, got none; check its dates")
    if missing == "fill":
        x = x.with_source(_filled(x.source, fill)) if isinstance(x, Windows) else _filled(x, fill)
    try:
        values = x.source if isinstance(x, Windows) else x
        check_features_finite(values, [str(feature) for feature in dataset.features], where=where)
    except ValueError as error:
        if missing == "fill":
            raise
        raise ValueError(f'{error}; missing="fill" fills NaN as Qlib does') from None
    if not label:
        return Rows(x, None, segment.index)
    if y is None:
        raise ValueError(f"{where} must have a label to train on, got a dataset without")
    check_label(y, where=where)
    return Rows(x, y, segment.index)


def weigh(rows: Rows, segment: Any, reweighter: Any) -> Rows:
    """The rows with weights.

    Args:
        segment: which they are, as the dataset gives it.
        reweighter: a function, or an object with a method `reweight`, from the segment to its rows' weights, an array [N]
            or a Series by (datetime, instrument); None for no weights.

    Raises:
        TypeError: neither of these. ValueError: weights that are not N finite numbers >= 0.
    """
    if reweighter is None:
        return rows
    function = getattr(reweighter, "reweight", reweighter)
    if not callable(function):
        raise TypeError(f"reweighter must be a function or have a method reweight, got {type(reweighter).__name__}")
    weight = function(segment)
    if isinstance(weight, pd.Series) and isinstance(weight.index, pd.MultiIndex):
        weight = weight.reindex(rows.index)
    weight = np.asarray(weight, dtype=np.float32)
    if weight.shape != (len(rows.x),) or not np.isfinite(weight).all() or (weight < 0).any():
        raise ValueError(f"reweighter must give {len(rows.x)} finite weights >= 0, one a row, got {weight.shape}: {weight[:5]}")
    return replace(rows, weight=weight)


def check_features(given: Sequence[Any], expected: Sequence[str] | None, count: int, *, owner: str) -> None:
    """Raises ValueError unless the dataset's features are, in order, those the model was fitted on."""
    if len(given) != count:
        raise ValueError(f"{owner}: the dataset must have the model's {count} features, got {len(given)}")
    if expected is None:
        return
    for number, (ours, theirs) in enumerate(zip(expected, map(str, given), strict=True)):
        if ours != theirs:
            same = sorted(expected) == sorted(map(str, given))
            advice = "the names are the same in another order: reorder the columns" if same else "use the same features"
            raise ValueError(f"{owner}: feature {number} must be {ours!r} as in training, got {theirs!r}; {advice}")


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(array), _BLOCK):
        yield array[start : start + _BLOCK]


def _filled(x: np.ndarray, fill: str) -> np.ndarray:
    """x [N, D] with its NaN replaced; x itself where it has none."""
    gaps = np.zeros(x.shape[1], dtype=bool)
    for block in _blocks(x):
        gaps |= np.isnan(block).any(axis=0)
    if not gaps.any():
        return x
    x = x.copy()
    for number in np.flatnonzero(gaps):
        column = x[:, number]
        missing = np.isnan(column)
        mean = column[~missing].mean(dtype=np.float64) if fill == "mean" and not missing.all() else 0.0
        column[missing] = mean
    return x
