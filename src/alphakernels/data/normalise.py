"""Normalisation: across the instruments of each day, or robustly by column with statistics of the training rows.

The arithmetic is that of Qlib's CSRankNorm, CSZScoreNorm and RobustZScoreNorm processors. NaN stays NaN throughout.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import pandas as pd

from alphakernels.data.pieces import on_threads

CHUNK = 1 << 17  # values transformed at a time: the float64 temporaries stay in cache
COLUMNS = 16  # laid side by side in memory at a time

# A rank in (0, 1] is uniform: mean 1/2 and standard deviation 1/sqrt(12) = 1/3.46.
RANK_SPREAD = 3.46

# 1.4826 times the median absolute deviation of normal values is their standard deviation.
MAD_TO_STD = 1.4826

# Added to the median absolute deviation: a constant column becomes 0, not 0/0.
EPS = 1e-12

Panel = TypeVar("Panel", pd.Series, pd.DataFrame)


def cs_rank_norm(values: Panel) -> Panel:
    """Rank among the day's instruments, as a fraction, centred and scaled to about unit spread: (rank - 0.5) * 3.46.

    Args:
        values: Series or DataFrame indexed by (datetime, instrument). Ties get their average rank; NaN has no rank
            and is not counted.

    Returns:
        The same shape and index, float64, in (-1.73, 1.73].
    """
    return (values.groupby(_day(values)).rank(pct=True) - 0.5) * RANK_SPREAD


def cs_zscore(values: Panel) -> Panel:
    """Less the day's mean, over the day's standard deviation (of n - 1), among the day's instruments.

    Args:
        values: Series or DataFrame indexed by (datetime, instrument).

    Returns:
        The same shape and index, float64; NaN on days with one instrument or with no spread.
    """
    values = values.astype(np.float64)
    by_day = values.groupby(_day(values))
    spread = by_day.transform("std")
    # A constant day is told by its range: its computed spread may be a rounding error instead of zero.
    varies = by_day.transform("max") > by_day.transform("min")
    return (values - by_day.transform("mean")) / spread.where(varies)


def _day(values: pd.Series | pd.DataFrame) -> pd.Index:
    index = values.index
    if not isinstance(index, pd.MultiIndex):
        raise ValueError(
            f"cross-sectional normalisation needs a (datetime, instrument) MultiIndex, got {type(index).__name__}"
        )
    return index.get_level_values("datetime" if "datetime" in index.names else 0)


class RobustZScore:
    """Columns less their median, over 1.4826 times their median absolute deviation, clipped.

    Fit it on the training rows only: statistics that have seen the test rows leak them into training.

    Args:
        clip: largest absolute value of the result, or None.

    Attributes:
        median: float64 [D], set by `fit`; NaN for a column without any number.
        scale: float64 [D], 1.4826 * (median absolute deviation + 1e-12).
    """

    def __init__(self, clip: float | None = 3.0) -> None:
        if clip is not None and not clip > 0:
            raise ValueError(f"RobustZScore: clip must be positive or None, got {clip}")
        self.clip = clip
        self.median: np.ndarray | None = None
        self.scale: np.ndarray | None = None

    def fit(self, x: np.ndarray) -> RobustZScore:
        """Takes the statistics of x [N, D], leaving NaN out; returns itself."""
        if x.ndim != 2 or len(x) == 0:
            raise ValueError(f"RobustZScore: x must be [N, D] with at least one row, got shape {x.shape}")
        self.median = np.full(x.shape[1], np.nan)
        self.scale = np.full(x.shape[1], np.nan)
        on_threads(lambda first: self._fit(x, first), range(0, x.shape[1], COLUMNS))
        return self

    def _fit(self, x: np.ndarray, first: int) -> None:
        columns = np.ascontiguousarray(x[:, first : first + COLUMNS].T)
        with np.errstate(invalid="ignore"):  # a column of infinities has no median; it stays visible as NaN
            for j, column in enumerate(columns, first):
                column = column[~np.isnan(column)].astype(np.float64)
                if column.size:
                    self.median[j] = np.median(column, overwrite_input=True)
                    column -= self.median[j]
                    self.scale[j] = (np.median(np.abs(column, out=column), overwrite_input=True) + EPS) * MAD_TO_STD

    def transform(self, x: np.ndarray) -> np.ndarray:
        """The normalised copy of x [N, D], float32; x is left as it is."""
        if self.median is None or self.scale is None:
            raise RuntimeError("RobustZScore: call fit before transform")
        if x.ndim != 2 or x.shape[1] != len(self.median):
            raise ValueError(f"RobustZScore: x must be [N, {len(self.median)}] as fitted, got shape {x.shape}")
        out = np.empty(x.shape, dtype=np.float32)
        rows = max(1, CHUNK // max(1, x.shape[1]))

        def transform(start: int) -> None:
            # In float64: the difference of near values must not keep only their rounding errors.
            with np.errstate(invalid="ignore"):
                piece = x[start : start + rows] - self.median
                piece /= self.scale
            if self.clip is not None:
                np.clip(piece, -self.clip, self.clip, out=piece)
            out[start : start + rows] = piece

        on_threads(transform, range(0, len(x), rows))
        return out
