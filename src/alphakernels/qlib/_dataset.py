"""Qlib's DatasetH and TSDatasetH as the estimators take them: segments in float32, fetched when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from qlib.data.dataset import DatasetH, TSDatasetH
from qlib.data.dataset.handler import DataHandlerLP

from alphakernels.data import PanelDataset, Segment, Windows

KEYS = {"learn": DataHandlerLP.DK_L, "infer": DataHandlerLP.DK_I}


@dataclass(frozen=True)
class Fetched:
    """A segment as a model takes it.

    Attributes:
        segment: sorted by day and instrument.
        order: int64 [N], the rows of `segment` in Qlib's order.
        frame: Qlib's frame in Qlib's order; None of windows.
    """

    segment: Segment
    order: np.ndarray
    frame: pd.DataFrame | None

    @property
    def index(self) -> pd.MultiIndex:
        """(datetime, instrument) in Qlib's order."""
        return self.segment.index[self.order]


class LearningData:
    """The view of a Qlib dataset that a model is trained on.

    Args:
        dataset: DatasetH or TSDatasetH.
        valid_key: "learn" or "infer", the processors that the segment "valid" has gone through.
        complete: leave out the rows that hold a NaN, as some of Qlib's models do (static datasets only).
    """

    def __init__(self, dataset: Any, *, valid_key: str = "learn", complete: bool = False) -> None:
        self.segments = dict(dataset.segments)
        self._dataset, self._valid_key, self._complete = dataset, valid_key, complete
        self._fetched: dict[str, Fetched] = {}
        self.features = self.fetched("train").segment.features

    def segment(self, name: str) -> Segment:
        return self.fetched(name).segment

    def fetched(self, name: str) -> Fetched:
        if name not in self._fetched:
            key = self._valid_key if name == "valid" else "learn"
            self._fetched[name] = fetch(self._dataset, name, key, label=True, complete=self._complete)
        return self._fetched[name]

    def weights(self, reweighter: Any, segment: Segment) -> np.ndarray:
        """What Qlib's reweighter gives for the rows of a segment of this dataset."""
        fetched = self.fetched(segment.name)
        prepared = fetched.frame
        if prepared is None:  # what Qlib hands it is the sampler, which is slow to build
            prepared = self._dataset.prepare(segment.name, col_set=["feature", "label"], data_key=KEYS["learn"])
            prepared.config(fillna_type="ffill+bfill")
        weights = np.asarray(reweighter.reweight(prepared), dtype=np.float32).reshape(-1)
        if len(weights) != len(fetched.order):
            return weights  # refused by the estimator, which says how many it needs
        sorted_weights = np.empty_like(weights)
        sorted_weights[fetched.order] = weights
        return sorted_weights


class InferenceData:
    """One segment to predict on. Features that are not there are zero here, and `usable` tells which rows that leaves whole."""

    def __init__(self, fetched: Fetched) -> None:
        segment = fetched.segment
        values = segment.x.source if isinstance(segment.x, Windows) else segment.x
        bad = ~np.isfinite(values)
        self.usable = np.ones(len(segment), dtype=bool)
        if bad.any():
            rows, values = bad.any(axis=1), np.where(bad, np.float32(0), values)
            if isinstance(segment.x, Windows):
                rows = rows[segment.x.positions(np.arange(len(segment)))].any(axis=1)
                segment = segment.with_features(segment.x.with_source(values))
            else:
                segment = replace(segment, x=values)
            self.usable = ~rows
        self._segment, self.features, self.segments = segment, segment.features, {"test": (None, None)}

    def segment(self, name: str) -> Segment:
        return self._segment


def fetch(dataset: Any, name: Any, key: str, *, label: bool, complete: bool = False) -> Fetched:
    """Prepares a segment.

    Args:
        name: a segment's name, or a slice of days.
        key: "learn" or "infer".

    Raises:
        ValueError: no such segment, no rows in it, no label or more than one.
    """
    if isinstance(name, str) and name not in dataset.segments:
        raise ValueError(f"no segment {name!r} in the dataset; it has {', '.join(map(repr, dataset.segments)) or 'none'}")
    bounds = dataset.segments[name] if isinstance(name, str) else name
    bounds = (bounds.start, bounds.stop) if isinstance(bounds, slice) else tuple(bounds)
    title = name if isinstance(name, str) else "as asked"
    where = f"segment {title!r} ({bounds[0]} to {bounds[1]})"
    columns = ["feature", "label"] if label else "feature"
    reach = slice(*bounds)
    if isinstance(dataset, TSDatasetH):
        if bounds[0] is not None:
            reach = TSDatasetH._extend_slice(reach, dataset.cal, dataset.step_len)
    try:
        # Past TSDatasetH's own, which would build a sampler with a Python object a row.
        frame = DatasetH._prepare_seg(dataset, reach, col_set=columns, data_key=KEYS[key])
    except KeyError as error:
        if label:
            raise ValueError(f"{where} must have features and a label, but the handler has no {error}") from error
        raise
    if len(frame) == 0:
        raise ValueError(f"{where} must have at least one row, got none; check its dates and those of the handler")
    if complete and not isinstance(dataset, TSDatasetH):
        frame = frame.dropna()
        if len(frame) == 0:
            raise ValueError(f"{where} must have a row without NaN, got none; check the handler's processors (Fillna, DropnaLabel)")
    panel = _panel(frame, where, label)
    if isinstance(dataset, TSDatasetH):
        try:
            segment = replace(panel.windows(dataset.step_len).segment(bounds), name=title)
        except ValueError as error:
            raise ValueError(f"{where} must have at least one row, got none: {error}") from error
        if dataset.flt_col is not None:
            segment = _filtered(dataset, segment, reach, key, where)
        return Fetched(segment, segment.x.by_instrument(), None)
    segment = replace(panel.segment(slice(None, None)), name=title)
    return Fetched(segment, segment.index.get_indexer(frame.index), frame)


def _filtered(dataset: TSDatasetH, segment: Segment, reach: slice, key: str, where: str) -> Segment:
    """The windows which the dataset's column `flt_col` marks; it has no say over the days they look back to."""
    marks = DatasetH._prepare_seg(dataset, reach, col_set=dataset.flt_col, data_key=KEYS[key])
    marks = marks.to_frame() if isinstance(marks, pd.Series) else marks
    if marks.shape[1] != 1:
        raise ValueError(f"{where}: flt_col={dataset.flt_col!r} must be one column, got {marks.shape[1]}")
    values = marks.iloc[:, 0].reindex(segment.index)
    rows = np.flatnonzero(values.notna() & (values != 0))
    if len(rows) == 0:
        raise ValueError(f"{where} must have a row that flt_col={dataset.flt_col!r} lets through, got none of {len(segment)}")
    return segment.chosen(rows)


def _panel(frame: pd.DataFrame, where: str, label: bool) -> PanelDataset:
    if not label:
        features, labels = frame, None
    else:
        features, labels = frame["feature"], frame["label"]
        if labels.shape[1] != 1:
            raise ValueError(f"{where} must have one label, got {labels.shape[1]}: {', '.join(map(str, labels.columns))}")
        labels = labels.to_numpy()[:, 0]
    names = [str(name[-1] if isinstance(name, tuple) else name) for name in features.columns]
    return PanelDataset.from_arrays(features.to_numpy(), labels, index=frame.index, names=names)
