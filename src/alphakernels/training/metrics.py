"""Information coefficients: the correlation, day by day, of a prediction with what then happened.

IC is Pearson's correlation over the instruments of one day, Rank IC is Spearman's (average ranks on ties); the
mean over days divided by the standard deviation over days is ICIR (Grinold & Kahn, Active Portfolio Management).
"""

from __future__ import annotations

import numpy as np
import pandas as pd


def _days(index: pd.Index) -> pd.Index:
    if not isinstance(index, pd.MultiIndex):
        raise TypeError(
            f"metrics: the series must have a (datetime, instrument) MultiIndex, got {type(index).__name__}"
        )
    return index.get_level_values("datetime" if "datetime" in index.names else 0)


def _pairs(prediction: pd.Series, label: pd.Series) -> tuple[np.ndarray, np.ndarray, np.ndarray, pd.Index]:
    """Both series on the prediction's rows as float64 [N], the day number of each row [N], and the days [T]."""
    days = _days(prediction.index)
    if not prediction.index.equals(label.index):
        _days(label.index)
        for name, series in (("prediction", prediction), ("label", label)):
            if not series.index.is_unique:
                key = series.index[series.index.duplicated()][0]
                raise ValueError(f"metrics: the {name} must have one row a (datetime, instrument), got {key} twice")
        label = label.reindex(prediction.index)
    codes, unique_days = pd.factorize(days, sort=True)
    p = prediction.to_numpy(dtype=np.float64, na_value=np.nan)
    y = label.to_numpy(dtype=np.float64, na_value=np.nan)
    return p, y, codes, pd.Index(unique_days, name="datetime")


def _correlation_by_day(p: np.ndarray, y: np.ndarray, codes: np.ndarray, n_days: int) -> np.ndarray:
    """Pearson's correlation of finite pairs [N] within each of `n_days` groups: [T], NaN where undefined."""
    result = np.full(n_days, np.nan)
    if p.size == 0:
        return result
    order = np.argsort(codes, kind="stable")
    p, y, codes = p[order], y[order], codes[order]
    starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
    count = np.diff(np.r_[starts, codes.size])

    def centred(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # A constant day is told by its range: its computed variance may be a rounding error instead of zero.
        varies = np.maximum.reduceat(v, starts) > np.minimum.reduceat(v, starts)
        return v - np.repeat(np.add.reduceat(v, starts) / count, count), varies

    dp, p_varies = centred(p)
    dy, y_varies = centred(y)
    covariance = np.add.reduceat(dp * dy, starts)
    spread = np.sqrt(np.add.reduceat(dp * dp, starts) * np.add.reduceat(dy * dy, starts))
    defined = (count >= 2) & p_varies & y_varies & (spread > 0)
    result[codes[starts[defined]]] = covariance[defined] / spread[defined]
    return result


def ic_by_day(prediction: pd.Series, label: pd.Series) -> pd.Series:
    """Pearson's correlation of prediction and label over the instruments of each day.

    Args:
        prediction, label: Series indexed by (datetime, instrument); the label is aligned to the prediction's rows.

    Returns:
        float64 Series indexed by every day of the prediction; NaN on days with fewer than two finite pairs or
        where either side does not vary.

    Raises:
        TypeError: an index that is not a MultiIndex.
        ValueError: duplicate keys where aligning is needed.
    """
    p, y, codes, days = _pairs(prediction, label)
    finite = np.isfinite(p) & np.isfinite(y)
    values = _correlation_by_day(p[finite], y[finite], codes[finite], len(days))
    return pd.Series(values, index=days, name="ic")


def rank_ic_by_day(prediction: pd.Series, label: pd.Series) -> pd.Series:
    """Spearman's correlation by day: as `ic_by_day`, of the ranks (average on ties) among the day's finite pairs."""
    p, y, codes, days = _pairs(prediction, label)
    finite = np.isfinite(p) & np.isfinite(y)
    codes = codes[finite]
    ranks = pd.DataFrame({"p": p[finite], "y": y[finite]}).groupby(codes).rank()
    values = _correlation_by_day(ranks["p"].to_numpy(), ranks["y"].to_numpy(), codes, len(days))
    return pd.Series(values, index=days, name="rank_ic")


def ic_summary(prediction: pd.Series, label: pd.Series) -> dict[str, float]:
    """`{"ic", "icir", "rank_ic", "rank_icir"}`: means over the days where defined, and mean over deviation.

    NaN where no day is defined (ic, rank_ic) or fewer than two are (icir, rank_icir).
    """
    summary: dict[str, float] = {}
    for name, daily in (
        ("ic", ic_by_day(prediction, label)),
        ("rank_ic", rank_ic_by_day(prediction, label)),
    ):
        mean, deviation = float(daily.mean()), float(daily.std())
        summary[name] = mean
        summary[name + "ir"] = mean / deviation if deviation > 0 else float("nan")
    return summary
