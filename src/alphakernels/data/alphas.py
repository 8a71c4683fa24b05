"""Alpha158: the 158 features of Qlib's handler of this name (Microsoft Qlib, contrib/data/loader.py), from bars: the shapes of the day's
candle, prices over the close, and 29 rolling statistics of price and volume over 5, 10, 20, 30 and 60 days.

Every statistic takes what there is of its window, from an instrument's first day on, as Qlib's do. In one thing they differ: for IMAX,
IMIN and IMXD a day without a row is never the highest or the lowest, where Qlib takes it for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import pandas as pd

from alphakernels._near import hint
from alphakernels.data.wide import Prices, wide_fields

WINDOWS = (5, 10, 20, 30, 60)
FIELDS = ("open", "high", "low", "close", "vwap", "volume")
EPS = 1e-12
# Where a window's deviation is below, its correlation and R² are not known, as in Qlib.
FLAT = 2e-5
CHUNK = 1 << 22  # values of all windows looked at in one go

Grid = np.ndarray  # [T, S], days x instruments, NaN where there is nothing


class _Bars:
    """The fields and what several features share."""

    def __init__(self, values: dict[str, Grid]) -> None:
        self.open, self.high, self.low, self.close, self.vwap, self.volume = (values[name] for name in FIELDS)
        there = ~np.isnan(self.close)
        self.first = np.where(there.any(axis=0), there.argmax(axis=0), len(there))  # [S]
        self.begun = np.arange(len(there))[:, None] >= self.first
        self._lines: dict[int, tuple[Grid, Grid, Grid]] = {}

    @cached_property
    def change(self) -> Grid:
        return self.close - _before(self.close)

    @cached_property
    def traded(self) -> Grid:
        return self.volume - _before(self.volume)

    @cached_property
    def weighted(self) -> Grid:
        """The volume times the size of the return."""
        return np.abs(self.close / _before(self.close) - 1) * self.volume

    @cached_property
    def logs(self) -> tuple[Grid, Grid, Grid]:
        """log(volume + 1), the close over the one before, log of the same of the volume, plus one."""
        return (
            np.log(self.volume + 1),
            self.close / _before(self.close),
            np.log(self.volume / _before(self.volume) + 1),
        )

    def share(self, holds: Grid, days: int) -> Grid:
        """Of the days since the instrument's first, on how many something holds."""
        return _rolling(np.where(self.begun, holds, np.nan), days).mean().to_numpy()

    def line(self, days: int) -> tuple[Grid, Grid, Grid]:
        """Slope, R² and the last day's residual of the close's regression on time."""
        if days not in self._lines:
            self._lines[days] = _regression(self.close, days)
        return self._lines[days]

    def latest(self, values: Grid, days: int) -> Grid:
        """The place of the first largest value within its window, from 1; the window begins with the instrument."""
        place = np.empty(values.shape)
        for rows, windows in _windows(values, days):
            found = np.where(np.isnan(windows), -np.inf, windows)
            began = np.maximum(0, self.first - (np.arange(rows.start, rows.stop)[:, None] - days + 1))
            place[rows] = np.where(np.isinf(found.max(axis=2)), np.nan, found.argmax(axis=2) - began + 1)
        return place


def _before(values: Grid, days: int = 1) -> Grid:
    out = np.full_like(values, np.nan)
    out[days:] = values[:-days] if days < len(values) else values[:0]
    return out


def _rolling(values: Grid, days: int):
    return pd.DataFrame(values).rolling(days, min_periods=1)


def _windows(values: Grid, days: int):
    """(rows, windows [rows, S, days]) piece by piece, NaN before the first day."""
    padded = np.concatenate([np.full((days - 1, values.shape[1]), np.nan), values])
    windows = np.lib.stride_tricks.sliding_window_view(padded, days, axis=0)  # [T, S, days]
    step = max(1, CHUNK // (days * max(1, values.shape[1])))
    for start in range(0, len(values), step):
        rows = slice(start, min(start + step, len(values)))
        yield rows, windows[rows]


def _regression(values: Grid, days: int) -> tuple[Grid, Grid, Grid]:
    slope, squared, residual = (np.empty(values.shape) for _ in range(3))
    x = np.arange(1.0, days + 1)
    for rows, windows in _windows(values, days):
        there = ~np.isnan(windows)
        n, sum_x, sum_xx = there.sum(axis=2), there @ x, there @ (x * x)
        mean = np.where(there, windows, 0.0).sum(axis=2) / n
        y = np.where(there, windows - mean[..., None], 0.0)
        xy, xx, yy = n * (y @ x), n * sum_xx - sum_x**2, n * (y * y).sum(axis=2)
        slope[rows] = xy / xx
        squared[rows] = xy * xy / (xx * yy)
        residual[rows] = values[rows] - (slope[rows] * (days - sum_x / n) + mean)
    squared[_flat(values, days)] = np.nan
    return slope, squared, residual


def _flat(values: Grid, days: int) -> np.ndarray:
    return _rolling(values, days).std().abs().to_numpy() <= FLAT


def _correlation(left: Grid, right: Grid, days: int) -> Grid:
    found = _rolling(left, days).corr(pd.DataFrame(right), pairwise=False).to_numpy(copy=True)
    found[_flat(left, days) | _flat(right, days)] = np.nan
    return found


def _gains(change: Grid, days: int, up: float, down: float) -> Grid:
    """Sums of the gains and of the losses, over that of both."""
    total = up * _rolling(np.maximum(change, 0), days).sum() + down * _rolling(np.maximum(-change, 0), days).sum()
    return (total / (_rolling(np.abs(change), days).sum() + EPS)).to_numpy()


def _spread(values: Grid, days: int) -> Grid:
    return (_rolling(values, days).std() / (_rolling(values, days).mean() + EPS)).to_numpy()


_Feature = Callable[[_Bars], Grid]
_SPOT: dict[str, _Feature] = {
    "KMID": lambda b: (b.close - b.open) / b.open,
    "KLEN": lambda b: (b.high - b.low) / b.open,
    "KMID2": lambda b: (b.close - b.open) / (b.high - b.low + EPS),
    "KUP": lambda b: (b.high - np.maximum(b.open, b.close)) / b.open,
    "KUP2": lambda b: (b.high - np.maximum(b.open, b.close)) / (b.high - b.low + EPS),
    "KLOW": lambda b: (np.minimum(b.open, b.close) - b.low) / b.open,
    "KLOW2": lambda b: (np.minimum(b.open, b.close) - b.low) / (b.high - b.low + EPS),
    "KSFT": lambda b: (2 * b.close - b.high - b.low) / b.open,
    "KSFT2": lambda b: (2 * b.close - b.high - b.low) / (b.high - b.low + EPS),
    "OPEN0": lambda b: b.open / b.close,
    "HIGH0": lambda b: b.high / b.close,
    "LOW0": lambda b: b.low / b.close,
    "VWAP0": lambda b: b.vwap / b.close,
}
_ROLLING: dict[str, Callable[[_Bars, int], Grid]] = {
    "ROC": lambda b, d: _before(b.close, d) / b.close,
    "MA": lambda b, d: _rolling(b.close, d).mean().to_numpy() / b.close,
    "STD": lambda b, d: _rolling(b.close, d).std().to_numpy() / b.close,
    "BETA": lambda b, d: b.line(d)[0] / b.close,
    "RSQR": lambda b, d: b.line(d)[1],
    "RESI": lambda b, d: b.line(d)[2] / b.close,
    "MAX": lambda b, d: _rolling(b.high, d).max().to_numpy() / b.close,
    "MIN": lambda b, d: _rolling(b.low, d).min().to_numpy() / b.close,
    "QTLU": lambda b, d: _rolling(b.close, d).quantile(0.8).to_numpy() / b.close,
    "QTLD": lambda b, d: _rolling(b.close, d).quantile(0.2).to_numpy() / b.close,
    "RANK": lambda b, d: _rolling(b.close, d).rank(pct=True).to_numpy(),
    "RSV": lambda b, d: (b.close - (low := _rolling(b.low, d).min().to_numpy())) / (_rolling(b.high, d).max().to_numpy() - low + EPS),
    "IMAX": lambda b, d: b.latest(b.high, d) / d,
    "IMIN": lambda b, d: b.latest(-b.low, d) / d,
    "IMXD": lambda b, d: (b.latest(b.high, d) - b.latest(-b.low, d)) / d,
    "CORR": lambda b, d: _correlation(b.close, b.logs[0], d),
    "CORD": lambda b, d: _correlation(b.logs[1], b.logs[2], d),
    "CNTP": lambda b, d: b.share(b.change > 0, d),
    "CNTN": lambda b, d: b.share(b.change < 0, d),
    "CNTD": lambda b, d: b.share(b.change > 0, d) - b.share(b.change < 0, d),
    "SUMP": lambda b, d: _gains(b.change, d, 1, 0),
    "SUMN": lambda b, d: _gains(b.change, d, 0, 1),
    "SUMD": lambda b, d: _gains(b.change, d, 1, -1),
    "VMA": lambda b, d: _rolling(b.volume, d).mean().to_numpy() / (b.volume + EPS),
    "VSTD": lambda b, d: _rolling(b.volume, d).std().to_numpy() / (b.volume + EPS),
    "WVMA": lambda b, d: _spread(b.weighted, d),
    "VSUMP": lambda b, d: _gains(b.traded, d, 1, 0),
    "VSUMN": lambda b, d: _gains(b.traded, d, 0, 1),
    "VSUMD": lambda b, d: _gains(b.traded, d, 1, -1),
}
ALPHA158 = (*_SPOT, *(f"{name}{days}" for name in _ROLLING for days in WINDOWS))
_BY_NAME: dict[str, _Feature] = _SPOT | {
    f"{name}{days}": lambda bars, make=make, days=days: make(bars, days) for name, make in _ROLLING.items() for days in WINDOWS
}


def alpha158(prices: Prices, names: Sequence[str] | None = None, *, complete: bool = False) -> pd.DataFrame:
    """Qlib's Alpha158, or some of its features.

    Args:
        prices: a long frame indexed by (datetime, instrument) with the columns open, high, low, close, vwap and volume, or a dict of
            wide frames (days x instruments) of these fields.
        names: features in the order wanted, out of `ALPHA158`; None takes all.
        complete: leave out the rows in which a feature is NaN or infinite.

    Returns:
        float32 frame sorted by (datetime, instrument), a column a feature.

    Raises:
        ValueError: a missing field, an unknown feature, or, with `complete`, no complete row.
    """
    names = ALPHA158 if names is None else tuple(names)
    for name in names:
        if name not in _BY_NAME:
            raise ValueError(f"alpha158: unknown feature {name!r}{hint(name, ALPHA158)}")
    values, keys = wide_fields(prices, FIELDS)
    bars = _Bars(values)
    out = np.empty((len(keys), len(names)), dtype=np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for j, name in enumerate(names):
            out[:, j] = _BY_NAME[name](bars)[keys.day, keys.instrument]
    frame = pd.DataFrame(out, index=keys.to_pandas(), columns=list(names), copy=False)
    if not complete:
        return frame
    keep = np.isfinite(out).all(axis=1)
    if not keep.any():
        raise ValueError(f"alpha158: no row has all {len(names)} features; the prices have {len(keys.days)} days: give a longer history")
    return frame[keep]
