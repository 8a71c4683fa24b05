"""Price windows and forward returns: what a model of daily bars looks at, and what it is asked to foresee.

The windows are those of Qlib's Alpha360 (Microsoft Qlib, contrib/data/loader.py): the latest `lags` values of each field
over a latest value, so that the level of a price drops out and its path remains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np
import pandas as pd

from alphakernels.data.index import PanelIndex
from alphakernels.data.pieces import on_threads
from alphakernels.data.wide import Prices, check_axes, field_name, wide_fields

ALPHA360_FIELDS = ("close", "open", "high", "low", "vwap", "volume")
ALPHA360_LAGS = 60

# Qlib adds it to the latest volume: a day without trade gives no 0/0.
VOLUME_EPS = 1e-12

CHUNK = 1 << 16  # values gathered at a time: the temporaries stay in cache

Close = TypeVar("Close", pd.Series, pd.DataFrame)


def window_names(fields: Sequence[str], lags: int) -> list[str]:
    """The columns of `price_windows`, field by field, oldest first: CLOSE59, ..., CLOSE0, OPEN59, ..."""
    return [f"{field_name(name).upper()}{lag}" for name in fields for lag in range(lags - 1, -1, -1)]


def price_windows(
    prices: Prices,
    fields: Sequence[str] = ("close",),
    lags: int = ALPHA360_LAGS,
    *,
    denominator: Literal["own", "close"] = "own",
    complete: bool = False,
) -> pd.DataFrame:
    """The latest `lags` values of each field, over their latest value.

    Lags count the days of the panel: a day on which an instrument has no row is a NaN in its windows.
    `price_windows(prices, ALPHA360_FIELDS, 60, denominator="close")` is Alpha360.

    Args:
        prices: a long frame indexed by (datetime, instrument) with a column a field, or a dict of wide frames
            (days x instruments), one a field. "$close" is understood as "close".
        fields: F fields, in the order of the result.
        lags: T values a field, today's included.
        denominator: "own" divides each field by its own latest value, "close" by the latest close, as Alpha360
            does. Volume is over the latest volume in both.
        complete: leave out the rows that hold a NaN, such as an instrument's first `lags` - 1 days.

    Returns:
        float32 frame sorted by (datetime, instrument), with F * T columns, feature-major and oldest first. Its rows
        are those of the long frame, or the days and instruments for which a wide frame has some value.

    Raises:
        ValueError: a missing field, lags < 1, an unknown denominator, or, with `complete`, no complete row.
    """
    fields = [field_name(name) for name in fields]
    if lags < 1:
        raise ValueError(f"price_windows: lags must be at least 1, got {lags}")
    if denominator not in ("own", "close"):
        raise ValueError(f"price_windows: denominator must be 'own' or 'close', got {denominator!r}")
    over_close = denominator == "close" and any(name != "volume" for name in fields)
    read = [*fields, "close"] if over_close and "close" not in fields else fields
    values, keys = wide_fields(prices, read)

    windows, latest = {}, {}
    for name in fields:
        # [S, lags - 1 + T]: an instrument's days lie side by side, so that a window is one run of memory.
        series = np.full((len(keys.instruments), lags - 1 + len(keys.days)), np.nan)
        series[:, lags - 1 :] = values[name].T
        windows[name] = np.lib.stride_tricks.sliding_window_view(series, lags, axis=1)  # [S, T, lags]
        latest[name] = values[name] + VOLUME_EPS if name == "volume" else values["close" if over_close else name]
    all_days, all_instruments = keys.day, keys.instrument  # positions in the windows, which `take` would renumber
    if complete:
        keep = _complete(keys, windows, latest, lags)
        all_days, all_instruments, keys = all_days[keep], all_instruments[keep], keys.take(keep)

    out = np.empty((len(keys), len(fields) * lags), dtype=np.float32)
    rows = max(1, CHUNK // lags)

    def make(start: int) -> None:
        day, instrument = all_days[start : start + rows], all_instruments[start : start + rows]
        for j, name in enumerate(fields):
            piece = windows[name][instrument, day]  # [rows, lags]
            with np.errstate(divide="ignore", invalid="ignore"):
                np.divide(
                    piece, latest[name][day, instrument][:, None], out=out[start : start + rows, j * lags : (j + 1) * lags], casting="same_kind"
                )

    on_threads(make, range(0, len(keys), rows))
    return pd.DataFrame(out, index=keys.to_pandas(), columns=window_names(fields, lags), copy=False)


def _complete(
    keys: PanelIndex, windows: dict[str, np.ndarray], latest: dict[str, np.ndarray], lags: int
) -> np.ndarray:
    """Which keys have windows without a NaN: bool [N]."""
    keep = np.ones(len(keys), dtype=bool)
    for name, window in windows.items():
        whole = ~np.isnan(latest[name])
        # Windows overlap: whether they are whole is a sliding sum of missing values, not a look at each of them.
        missing = np.isnan(window[:, 0]).sum(axis=1)[:, None] + np.zeros(window.shape[1], dtype=np.int64)
        missing[:, 1:] += np.cumsum(
            np.isnan(window[:, 1:, -1]).astype(np.int64) - np.isnan(window[:, :-1, 0]), axis=1
        )
        keep &= ((missing.T == 0) & whole)[keys.day, keys.instrument]
    if not keep.any():
        raise ValueError(
            f"price_windows: no row has {lags} days of history without a gap; the prices have {len(keys.days)} days "
            f"and {len(keys.instruments)} instruments: use fewer lags, or complete=False to keep the gaps as NaN"
        )
    return keep


def forward_returns(close: Close, horizon: int = 1, delay: int = 1) -> Close:
    """The return of a position entered `delay` days after today's close and held for `horizon` days.

    close[t + delay + horizon] / close[t + delay] - 1. The defaults are the label of Qlib's handlers,
    Ref($close, -2) / Ref($close, -1) - 1: a signal of today's close can be traded at tomorrow's at the earliest.

    Args:
        close: a wide frame (days x instruments), or a long Series indexed by (datetime, instrument). Days count as
            rows of the panel.
        horizon: days held, at least 1.
        delay: days until entry, at least 0.

    Returns:
        float32 of the same form, sorted; a Series is named "label". NaN on the last `horizon` + `delay` days, and
        wherever either price is missing.

    Raises:
        ValueError: horizon < 1, delay < 0, duplicate keys, or rows that are not dates.
    """
    if horizon < 1 or delay < 0:
        raise ValueError(
            f"forward_returns: horizon must be at least 1 and delay at least 0, got horizon {horizon}, delay {delay}"
        )
    if isinstance(close, pd.DataFrame):
        days, instruments = check_axes(close)
        order = np.argsort(days, kind="stable")
        returns = _returns(close.to_numpy(dtype=np.float64)[order], horizon, delay)
        return pd.DataFrame(returns, index=days[order], columns=instruments)
    values, keys = wide_fields(close.to_frame("close"), ["close"])
    returns = _returns(values["close"], horizon, delay)[keys.day, keys.instrument]
    return pd.Series(returns, index=keys.to_pandas(), name="label")


def _returns(close: np.ndarray, horizon: int, delay: int) -> np.ndarray:
    """Forward returns of [T, S] closes: float32 [T, S]."""
    returns = np.full(close.shape, np.nan, dtype=np.float32)
    known = len(close) - horizon - delay
    if known > 0:
        with np.errstate(divide="ignore", invalid="ignore"):
            returns[:known] = close[delay + horizon :] / close[delay : delay + known] - 1
    return returns
