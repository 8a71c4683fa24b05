"""From a DataFrame's columns to one row-major float32 array, in bounded extra memory, with errors that name columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

SHOWN = 10
CHUNK = 1 << 22  # values copied at a time


def shown(names: Iterable[object], limit: int = SHOWN) -> str:
    """The first few names, for a message."""
    names = list(names)
    return ", ".join(map(str, names[:limit])) + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def columns_of(
    frame: pd.DataFrame, label: str | None, features: Sequence[str] | None
) -> tuple[list[tuple[str, int]], int | None]:
    """The features as (name, position) and the label's position.

    Raises:
        ValueError: missing, duplicate or non-numeric columns, each named.
    """
    available, label_position = _named(frame, label)
    if features is not None:
        missing = [name for name in map(str, features) if name not in available]
        if missing:
            raise ValueError(f"feature columns {shown(missing)} are missing; the frame has {shown(available)}")
        available = {str(name): available[str(name)] for name in features}
    if not available:
        raise ValueError(f"the frame must have at least one feature column, got {shown(frame.columns)}")
    wanted = [*available.values(), *([] if label_position is None else [label_position])]
    text = [frame.columns[j] for j in wanted if not _is_real(frame.dtypes.iloc[j])]
    if text:
        kinds = ", ".join(f"{name} ({frame[name].dtype})" for name in text[:SHOWN])
        raise ValueError(f"columns must be numeric, and not complex, got {kinds}; convert or drop them, or choose others by features=")
    return list(available.items()), label_position


def _is_real(dtype: Any) -> bool:
    return pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype)


def _named(frame: pd.DataFrame, label: str | None) -> tuple[dict[str, int], int | None]:
    """Every possible feature's position by name, and the label's position."""
    if not frame.columns.is_unique:
        raise ValueError(f"columns must be unique, got more than one of {shown(_repeated(frame.columns))}")
    if frame.columns.nlevels == 2:  # Qlib's groups: ("feature", name), ("label", name)
        return _grouped(frame, label)
    if frame.columns.nlevels > 2:
        raise ValueError(f"columns must have one level, or two as Qlib's, got {frame.columns.nlevels}")
    names = {str(name): j for j, name in enumerate(frame.columns)}
    if label is None:
        return names, None
    if label not in names:
        raise ValueError(_no_label(label, shown(names)))
    return names, names.pop(label)


def _grouped(frame: pd.DataFrame, label: str | None) -> tuple[dict[str, int], int | None]:
    groups: dict[str, dict[str, int]] = {}
    for j, (group, name) in enumerate(frame.columns):
        groups.setdefault(str(group), {})[str(name)] = j
    if "feature" not in groups:
        raise ValueError(f"two-level columns must have a group 'feature', got the groups {shown(groups)}")
    if label is None:
        return groups["feature"], None
    labels = groups.get("label", {})
    if label in labels:
        return groups["feature"], labels[label]
    if len(labels) == 1 and label == "label":
        return groups["feature"], next(iter(labels.values()))
    if labels:
        raise ValueError(f"label {label!r} must be one of the label columns {shown(labels)}; choose it by label=")
    raise ValueError(_no_label(label, shown(f"{group}/..." for group in groups)))


def _no_label(label: str, found: str) -> str:
    return (
        f"label column {label!r} is missing; the frame has {found}; name the label's column by label=, or pass "
        f"label=None for a dataset to predict on"
    )


def _repeated(columns: pd.Index) -> list[object]:
    return list(columns[columns.duplicated()].unique())


def read_float32(frame: pd.DataFrame, positions: Sequence[int], order: np.ndarray | None) -> np.ndarray:
    """The columns at `positions` as a row-major float32 array [N, len(positions)], rows in the given order."""
    out = np.empty((len(frame), len(positions)), dtype=np.float32)
    rows = max(1, CHUNK // max(1, len(positions)))
    for start in range(0, len(frame), rows):
        stop = min(start + rows, len(frame))
        # Rows first: they are a view, whereas choosing columns copies them.
        piece = frame.iloc[start:stop] if order is None else frame.take(order[start:stop])
        out[start:stop] = piece.iloc[:, list(positions)].to_numpy(dtype=np.float32, na_value=np.nan)
    return out
