"""Arrays in the place of a dataset: `fit(X, y, eval_set=..., dates=..., instruments=...)`, `predict(X)`, as scikit-learn has it.

Arrays become the segments of a dataset, each on its own, sorted by day and instrument; scores come back in the order the rows
came in. scikit-learn itself is not needed: where it is loaded, what it looks for is there.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from alphakernels.data import GivenWindows, PanelIndex, Segment
from alphakernels.data.index import NAMES, as_days


def is_dataset(data: Any) -> bool:
    """Whether `data` is a dataset and not an array, a frame or a list."""
    return callable(getattr(data, "segment", None))


def is_named(dataset: Any) -> bool:
    """Whether its features have names of their own, as all but those of arrays do."""
    return getattr(dataset, "named", True)


@dataclass(frozen=True)
class ArraySegment:
    """Rows given as arrays.

    Attributes:
        segment: the rows in the order of the panel.
        order: int64 [N], the place of each of them in the arrays.
        named: whether the features came with names, and not with such as F0, F1 made up here.
    """

    segment: Segment
    order: np.ndarray
    named: bool

    def as_given(self, values: np.ndarray) -> np.ndarray:
        """`values` [N] of the panel's rows in the order of the arrays."""
        given = np.empty_like(values)
        given[self.order] = values
        return given


class ArrayDataset:
    """Arrays by segment, with what an estimator asks of a dataset."""

    def __init__(self, segments: dict[str, ArraySegment]) -> None:
        self._arrays = segments
        self.segments = dict.fromkeys(segments, (None, None))
        first = next(iter(segments.values()))
        self.features, self.named = first.segment.features, first.named

    def segment(self, name: str) -> Segment:
        if name not in self._arrays:
            raise ValueError(f"no segment {name!r} in the arrays given; there are {', '.join(self._arrays)}")
        return self._arrays[name].segment


def training_arrays(owner: str, x: Any, y: Any, eval_set: Any, dates: Any, instruments: Any) -> ArrayDataset:
    """The segments "train" and "valid" of `fit`. Without `eval_set` the epochs are judged by the training rows."""
    if y is None:
        raise ValueError(f"This {owner} estimator requires y to be passed, but the target y is None.")
    eval_x, eval_y, eval_dates, eval_instruments = _eval_set(owner, eval_set)
    train = array_segment(owner, "train", x, y, dates, instruments)
    if len(train.segment) < 2:
        raise ValueError(f"{owner}: X must have at least 2 rows to train on, got n_samples = 1")
    if eval_x is None:
        return ArrayDataset({"train": train, "valid": train})
    valid = array_segment(owner, "valid", eval_x, eval_y, eval_dates, eval_instruments)
    expected, got = train.segment.features, valid.segment.features
    if len(got) != len(expected) or (train.named and valid.named and got != expected):
        raise ValueError(
            f"{owner}: eval_set must have X's {len(expected)} features, got {len(got)}"
            + ("" if len(got) != len(expected) else " of other names or in another order")
        )
    return ArrayDataset({"train": train, "valid": valid})


def _eval_set(owner: str, eval_set: Any) -> tuple[Any, Any, Any, Any]:
    if eval_set is None:
        return None, None, None, None
    if isinstance(eval_set, list) and len(eval_set) == 1:  # as LightGBM and pytorch-tabnet take it
        (eval_set,) = eval_set
    elif isinstance(eval_set, list) and all(isinstance(pair, tuple) for pair in eval_set):
        raise ValueError(f"{owner}: eval_set must be one (X, y) to choose the epoch by, got a list of {len(eval_set)}; give one of them")
    if not isinstance(eval_set, (tuple, list)) or len(eval_set) not in (2, 3, 4):
        raise ValueError(
            f"{owner}: eval_set must be (X, y), (X, y, dates) or (X, y, dates, instruments), got {type(eval_set).__name__}"
            + (f" of {len(eval_set)}" if isinstance(eval_set, (tuple, list)) else "")
        )
    return (*eval_set, None, None)[:4]


def array_segment(owner: str, name: str, x: Any, y: Any, dates: Any, instruments: Any) -> ArraySegment:
    """One segment of arrays.

    Args:
        x: features [N, D] or windows [N, T, D]: an array, a tensor, a list or a frame. A frame's (datetime, instrument) index
            gives dates and instruments, its columns the names.
        y: labels [N], or None.
        dates, instruments: [N] each. Without dates all rows are of one day; without instruments a day's rows are numbered.

    Raises:
        TypeError, ValueError: what is wrong, in scikit-learn's words where it has some.
    """
    index = x.index if isinstance(x, (pd.DataFrame, pd.Series)) else None
    columns = x.columns if isinstance(x, pd.DataFrame) else None
    values = _features(owner, x)
    count = len(values)
    check_aligned(owner, x, y)
    label = None if y is None else _label(owner, y, count)
    if dates is None and instruments is None and isinstance(index, pd.MultiIndex) and index.nlevels == 2:
        keys = PanelIndex.from_pandas(index)
    else:
        keys = _keys(owner, count, dates, instruments)
    order = keys.sorting()
    if order is None:
        order = np.arange(count)
    else:
        keys, values, label = keys.take(order), values[order], None if label is None else label[order]
    named = columns is not None and all(isinstance(column, str) for column in columns)
    names = tuple(columns) if named else tuple(f"F{j}" for j in range(values.shape[-1]))
    features = values if values.ndim == 2 else GivenWindows(values, keys)
    return ArraySegment(Segment(name, features, label, keys.to_pandas(), names), order, named)


def _features(owner: str, x: Any) -> np.ndarray:
    if hasattr(x, "tocsr"):
        raise TypeError(f"{owner}: sparse X is not supported, got {type(x).__name__}; pass X.toarray()")
    x = _array(x)
    if x.dtype.kind == "c":
        raise ValueError(f"Complex data not supported by {owner}: X must be real, got {x.dtype}")
    if x.ndim < 2:
        raise ValueError(
            f"{owner}: Expected 2D array [rows, features] or 3D array [rows, days, features], got {x.ndim}D array instead. "
            "Reshape your data either using array.reshape(-1, 1) if your data has a single feature or array.reshape(1, -1) if "
            "it contains a single sample."
        )
    if x.ndim > 3:
        raise ValueError(f"{owner}: Found array with dim {x.ndim}, while dim <= 3 is required: X must be [N, D] or [N, T, D]")
    if 0 in x.shape:
        what = "sample(s)" if x.shape[0] == 0 else "feature(s)"
        raise ValueError(f"Found array with 0 {what} (shape={x.shape}) while a minimum of 1 is required by {owner}.")
    return _float32(owner, "X", x)


def check_aligned(owner: str, x: Any, y: Any) -> None:
    """Raises ValueError where X and y both have keys and these differ: labels go by place, and would be mixed up."""
    indexes = [values.index for values in (x, y) if isinstance(values, (pd.DataFrame, pd.Series))]
    if len(indexes) == 2 and all(isinstance(index, pd.MultiIndex) for index in indexes) and not indexes[0].equals(indexes[1]):
        raise ValueError(f"{owner}: y must have X's index, row by row, got other keys or another order; align it: y.reindex(X.index)")


def _label(owner: str, y: Any, count: int) -> np.ndarray:
    y = _array(y)
    if y.dtype.kind == "c":
        raise ValueError(f"Complex data not supported by {owner}: y must be real, got {y.dtype}")
    if y.ndim == 2 and y.shape[1] == 1:
        message = "A column-vector y was passed when a 1d array was expected. Please change the shape of y to (n_samples,)."
        warnings.warn(message, _sklearn("DataConversionWarning", UserWarning), stacklevel=4)
        y = y[:, 0]
    if y.shape != (count,):
        raise ValueError(f"{owner}: y must be of shape [{count}], one label a row of X, got {list(y.shape)}")
    y = _float32(owner, "y", y)
    if np.isinf(y).any():
        raise ValueError(f"{owner}: Input y contains infinity or a value too large for float32.")
    return y


def _array(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return values.float().numpy() if values.dtype == torch.bfloat16 else values.numpy()
    return np.asarray(values)


def _float32(owner: str, what: str, values: np.ndarray) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):  # becomes infinity, which is refused by name later
            return np.ascontiguousarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{owner}: {what} must hold numbers, got {values.dtype} values ({error})") from None


def _keys(owner: str, count: int, dates: Any, instruments: Any) -> PanelIndex:
    for name, given in (("dates", dates), ("instruments", instruments)):
        if given is not None and len(given) != count:
            raise ValueError(f"{owner}: {name} must have one entry a row of X, {count}, got {len(given)}")
    days = pd.DatetimeIndex(["1970-01-01"]).repeat(count) if dates is None else as_days(pd.Index(dates))
    if instruments is None:
        instruments = pd.Series(0, index=range(count)).groupby(np.asarray(days)).cumcount().to_numpy()
    return PanelIndex.from_pandas(pd.MultiIndex.from_arrays([days, pd.Index(instruments)], names=list(NAMES)))


def check_column_count(owner: str, given: int, expected: int) -> None:
    """Raises in scikit-learn's words."""
    if given != expected:
        raise ValueError(f"X has {given} features, but {owner} is expecting {expected} features as input")


def not_fitted(message: str) -> Exception:
    """scikit-learn's NotFittedError, a ValueError, where scikit-learn is loaded; else a ValueError."""
    return _sklearn("NotFittedError", ValueError)(message)


def _sklearn(name: str, otherwise: type) -> type:
    return getattr(sys.modules.get("sklearn.exceptions"), name, otherwise)


def r2(label: Sequence[float], prediction: np.ndarray) -> float:
    """The coefficient of determination, over the rows that have a label."""
    label = np.asarray(label, dtype=np.float64).reshape(-1)
    seen = ~np.isnan(label)
    label, prediction = label[seen], np.asarray(prediction, dtype=np.float64)[seen]
    residual, total = ((label - prediction) ** 2).sum(), ((label - label.mean()) ** 2).sum()
    return float(1 - residual / total) if total > 0 else float(residual == 0)


class SklearnInterface:
    """What scikit-learn asks of a regressor beside fit, predict and its parameters.

    Of its `check_estimator` three rules do not hold, on purpose: a bad argument is refused by the constructor already; the score of a
    row may depend on the rows predicted with it (GATs, HIST: on those of its day); and HIST needs to know which stock a row is of, so
    that rows without `instruments` are not to be shuffled.
    """

    _estimator_type = "regressor"

    def __sklearn_is_fitted__(self) -> bool:
        return self.fitted

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, RegressorTags, Tags, TargetTags

        return Tags(
            estimator_type="regressor",
            target_tags=TargetTags(required=True),
            regressor_tags=RegressorTags(),
            input_tags=InputTags(allow_nan=False),
        )

    @property
    def n_features_in_(self) -> int:
        if not self.fitted:
            raise AttributeError(f"{type(self).__name__} has no n_features_in_ before it is fitted")
        return self._n_features

    def score(self, X: Any, y: Any, **keys: Any) -> float:  # noqa: N803 (scikit-learn's name)
        """R² of `predict(X)` on the rows whose label is not NaN."""
        check_aligned(type(self).__name__, X, y)
        return r2(y, self.predict(X, **keys))
