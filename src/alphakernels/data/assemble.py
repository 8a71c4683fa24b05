"""The last steps from features and returns to a dataset ready to train on: join, segments, normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd

from alphakernels.data.index import PanelIndex
from alphakernels.data.panel import PanelDataset
from alphakernels.data.segments import split_days

LabelNorm = Literal["rank", "zscore"] | None
FeatureNorm = Literal["robust_zscore"] | None


def assemble(
    features: pd.DataFrame,
    label: pd.DataFrame | pd.Series | None,
    segments: Mapping[str, Any],
    label_norm: LabelNorm = "rank",
    feature_norm: FeatureNorm = "robust_zscore",
    *,
    start: str | None = None,
) -> PanelDataset:
    """Joins features with their label, and normalises both.

    Args:
        features: long frame indexed by (datetime, instrument), without a column called "label".
        label: the label as a long Series, or as a wide frame (days x instruments); rows it lacks become NaN.
        segments: (first, last) day by name, or a share of the days by name, as `split_days` takes them.
        label_norm: "rank" or "zscore" among the day's instruments, or None.
        feature_norm: "robust_zscore", fit on the segment "train" alone, or None.
        start: first day of the dataset, as text.

    Raises:
        ValueError: an unknown normalisation, a segment without rows, or no segment "train" to fit on.
    """
    if label_norm not in ("rank", "zscore", None):
        raise ValueError(f"label_norm must be 'rank', 'zscore' or None, got {label_norm!r}")
    if feature_norm not in ("robust_zscore", None):
        raise ValueError(f"feature_norm must be 'robust_zscore' or None, got {feature_norm!r}")
    keys = PanelIndex.from_pandas(features.index)
    if start is not None:
        kept = keys.day >= keys.days.searchsorted(pd.Timestamp(start, tz=keys.days.tz))
        if not kept.any():
            raise ValueError(f"no rows are left from start {start!r} on; the data ends on {keys.days[-1]:%Y-%m-%d}")
        features, keys = features[kept], keys.take(kept)
    dataset = PanelDataset.from_arrays(
        features.to_numpy(),
        None if label is None else _aligned(label, keys),
        index=features.index,
        names=list(map(str, features.columns)),
    )
    if all(isinstance(bounds, (int, float)) for bounds in segments.values()):
        segments = split_days(dataset.days, segments)
    dataset = dataset.with_segments(segments)
    for name in dataset.segments:
        dataset.segment(name)
    if label is not None and label_norm is not None:
        dataset = dataset.cs_rank_norm() if label_norm == "rank" else dataset.cs_zscore()
    return dataset.robust_zscore() if feature_norm is not None else dataset


def _aligned(label: pd.DataFrame | pd.Series, keys: PanelIndex) -> np.ndarray:
    """The label of each key: [N], NaN where there is none."""
    if isinstance(label, pd.Series):
        return label.reindex(keys.to_pandas()).to_numpy(np.float32)
    grid = label.reindex(index=keys.days, columns=keys.instruments).to_numpy(np.float32)
    return grid[keys.day, keys.instrument]
