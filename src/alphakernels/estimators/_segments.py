"""What must hold of a segment before a model sees it, told in the names of its columns."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from alphakernels.data.finite import check_features_finite, check_label

# Rows looked at in one go, so that checking a large segment makes no copy of its size.
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Rows:
    """A checked segment: x [N, D] float32, y [N] float32 or None, index (datetime, instrument)."""

    x: np.ndarray
    y: np.ndarray | None
    index: pd.MultiIndex

    def digest(self) -> str:
        """Tells data apart, for the fingerprint of a run."""
        total = 0
        for array in (self.x, self.y):
            if array is not None:
                for block in _blocks(array):
                    total = zlib.crc32(np.ascontiguousarray(block), total)
        return f"{self.x.shape[0]} rows, crc32 {total:08x}"


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
        x = _filled(x, fill)
    try:
        check_features_finite(x, [str(feature) for feature in dataset.features], where=where)
    except ValueError as error:
        if missing == "fill":
            raise
        raise ValueError(f'{error}; missing="fill" fills NaN as Qlib\'s TabNet does') from None
    if not label:
        return Rows(x, None, segment.index)
    if y is None:
        raise ValueError(f"{where} must have a label to train on, got a dataset without")
    check_label(y, where=where)
    return Rows(x, y, segment.index)


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
