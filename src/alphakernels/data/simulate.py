"""Simulated markets with planted signals: panels of any size, in which it is known what there is to find.

Of instrument i and day t, r is the log return of the close, m a market move common to all, and two signals are planted:

    raw[t, i]  = -(log c[t, i] - log c[t-5, i]) / sqrt(5) + (log c[t-5, i] - log c[t-20, i]) / sqrt(15)
    mood[t, g] = the mean over the instruments of sector g of log c[t, i] - log c[t-1, i]
    s[t, i]    = raw[t, i], standardised
    x[t, i]    = s[t, i] * mood[t, g(i)], standardised
    r[t+2, i]  = m[t+2] + volatility * (signal * s[t, i] + cross_signal * x[t, i] + sqrt(1 - signal^2 - cross_signal^2) * e[t+2, i])

where standardised means: less the mean over i, over the standard deviation over i. e is independent of the past and has unit
variance; `sector_share` of it is common to the instruments of a sector, where there are several sectors.

s is temporal: what reversal over a week and momentum over the month before it foresee, a function of an instrument's latest 21
closes. x is cross-sectional: the same pattern, which pays or costs by how the instrument's sector (the whole market, where there
is one sector only) has moved on the day. One instrument's own prices say little of that; the others' prices say it all. A mood
lasts a day, so that a training on some hundred days sees some hundred of them.

Since e is independent of both and all have unit variance, the correlation over i of s[t] with r[t+2] is `signal` in expectation
on every day (where only s is planted; that of x is `cross_signal` where only x is), but for terms of the order 1 / instruments.
The label of forward_returns(delay=1, horizon=1) is exp(r[t+2]) - 1, whose common factor exp(m) leaves the day's correlation as it
is, and whose curvature lowers it by a part of the order volatility^2. That is the IC which no model can beat.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from alphakernels.data.features import forward_returns
from alphakernels.data.index import PanelIndex

REVERSAL_DAYS = 5
MOMENTUM_DAYS = 20
MOOD_DAYS = 1
DELAY = 2  # days from a signal to the close that ends the return it foresees

BARS = ("open", "high", "low", "close", "vwap", "volume")


@dataclass(frozen=True)
class SimulatedMarket:
    """A simulated panel, and what was planted in it.

    Attributes:
        frame: float32 [days * instruments, 6] with columns open, high, low, close, vwap and volume, indexed by
            (datetime, instrument), sorted; low <= open, close, vwap <= high, and volume > 0.
        signal: the planted signal s, float32, of zero mean and unit spread on each day. Its expected daily IC with
            `forward_return` is the strength.
        cross_signal: the planted cross-sectional signal x, likewise.
        sectors: the sector's name by instrument; of use to HIST as its predefined concepts.
        forward_return: forward_returns of the closes (delay 1, horizon 1), float32, NaN on the last two days.
    """

    frame: pd.DataFrame
    signal: pd.Series
    cross_signal: pd.Series
    sectors: pd.Series
    forward_return: pd.Series


def simulate_market(
    instruments: int,
    days: int,
    seed: int = 0,
    signal: float = 0.1,
    *,
    volatility: float = 0.02,
    market_volatility: float = 0.005,
    cross_signal: float = 0.0,
    sectors: int = 1,
    sector_share: float = 0.2,
    start: str = "2010-01-04",
) -> SimulatedMarket:
    """Simulates daily bars of a whole market with signals planted in the closes: see the module for how.

    Args:
        instruments: S, at least 2; they are called S0000, S0001, ...
        days: T business days from `start`, at least 1.
        seed: of the random numbers; the same seed gives the same market.
        signal: strength in [0, 1): the expected daily IC of the planted signal; 0 plants nothing.
        volatility: of an instrument's own daily log return.
        market_volatility: of the daily log return common to all.
        cross_signal: strength in [0, 1) of the planted cross-sectional signal; with `signal` it stays below the unit circle.
        sectors: number of sectors, at most half as many as instruments; instrument i is in sector i modulo sectors.
        sector_share: of an instrument's own variance, in [0, 1), that it has in common with its sector, if there are several.
        start: first day.

    Raises:
        ValueError: sizes, strength or volatilities out of range.
    """
    if instruments < 2 or days < 1:
        raise ValueError(
            f"simulate_market: needs at least 2 instruments and 1 day, got {instruments} instruments, {days} days"
        )
    if not 0 <= signal < 1 or not 0 <= cross_signal < 1 or not signal**2 + cross_signal**2 < 1:
        raise ValueError(
            "simulate_market: signal and cross_signal must be strengths in [0, 1) whose squares sum to less than 1, got "
            f"{signal} and {cross_signal}"
        )
    if not 1 <= sectors <= max(1, instruments // 2) or not 0 <= sector_share < 1:
        raise ValueError(
            f"simulate_market: sectors must be from 1 to {max(1, instruments // 2)} and sector_share in [0, 1), got {sectors} "
            f"and {sector_share}"
        )
    if not volatility > 0 or not market_volatility >= 0:
        raise ValueError(
            f"simulate_market: volatility must be positive and market_volatility not negative, got {volatility} and "
            f"{market_volatility}"
        )
    rng = np.random.default_rng(seed)
    sector = np.arange(instruments) % sectors
    # The days before the first give every signal its history.
    log_close, planted, crossed = _closes(
        rng,
        sector,
        days + MOMENTUM_DAYS,
        strengths=(signal, cross_signal),
        volatilities=(volatility, market_volatility),
        sector_share=sector_share if sectors > 1 else 0.0,
    )
    bars = _bars(rng, log_close[MOMENTUM_DAYS - 1 :], volatility)  # [T, S, 6]

    width = max(4, len(str(instruments - 1)))
    names = pd.Index([f"S{i:0{width}d}" for i in range(instruments)])
    calendar = pd.bdate_range(start, periods=days)
    index = PanelIndex.product(calendar, names).to_pandas()
    close = pd.DataFrame(bars[:, :, BARS.index("close")], index=calendar, columns=names)
    return SimulatedMarket(
        frame=pd.DataFrame(bars.reshape(-1, len(BARS)), index=index, columns=list(BARS), copy=False),
        signal=pd.Series(planted[MOMENTUM_DAYS:].reshape(-1), index=index, name="signal"),
        cross_signal=pd.Series(crossed[MOMENTUM_DAYS:].reshape(-1), index=index, name="cross_signal"),
        sectors=pd.Series([f"G{g:0{len(str(sectors - 1))}d}" for g in sector], index=names, name="sector"),
        forward_return=pd.Series(forward_returns(close).to_numpy().reshape(-1), index=index, name="forward_return"),
    )


def _closes(
    rng: np.random.Generator,
    sector: np.ndarray,
    days: int,
    *,
    strengths: tuple[float, float],
    volatilities: tuple[float, float],
    sector_share: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log closes, float64 [days, S], and both signals, float32 [days, S], zero on the first days without history.

    A loop over the days, because each depends on the prices before it; the instruments go side by side.
    """
    instruments, sectors = len(sector), int(sector.max()) + 1
    sizes = np.bincount(sector)
    log_close = np.empty((days, instruments))
    planted, crossed = (np.zeros((days, instruments), dtype=np.float32) for _ in range(2))
    log_close[0] = np.log(50.0) + 0.7 * rng.standard_normal(instruments)
    noise = np.sqrt(1.0 - strengths[0] ** 2 - strengths[1] ** 2)
    for t in range(1, days):
        step = rng.standard_normal(instruments)
        if sector_share:
            common = _standardised(rng.standard_normal(sectors)[sector])
            step = np.sqrt(1 - sector_share) * step + np.sqrt(sector_share) * common
        # Without a signal to act on, the noise has the whole variance.
        if t - DELAY >= MOMENTUM_DAYS:
            step *= noise
            step += strengths[0] * planted[t - DELAY] + strengths[1] * crossed[t - DELAY]
        log_close[t] = log_close[t - 1] + volatilities[0] * step + volatilities[1] * rng.standard_normal()
        if t >= MOMENTUM_DAYS:
            week = log_close[t] - log_close[t - REVERSAL_DAYS]
            month_before = log_close[t - REVERSAL_DAYS] - log_close[t - MOMENTUM_DAYS]
            planted[t] = _standardised(month_before / np.sqrt(MOMENTUM_DAYS - REVERSAL_DAYS) - week / np.sqrt(REVERSAL_DAYS))
            mood = np.bincount(sector, weights=log_close[t] - log_close[t - MOOD_DAYS]) / sizes  # [sectors]
            crossed[t] = _standardised(planted[t] * mood[sector])
    return log_close, planted, crossed


def _standardised(values: np.ndarray) -> np.ndarray:
    """Zero mean and unit spread over the instruments: [S]."""
    return (values - values.mean()) / values.std()


def _bars(rng: np.random.Generator, log_close: np.ndarray, volatility: float) -> np.ndarray:
    """Bars of all days but the first from log closes [T + 1, S]: float32 [T, S, 6]."""
    before, close = log_close[:-1], log_close[1:]
    shape = close.shape
    bars = np.empty((*shape, len(BARS)), dtype=np.float32)
    opening = before + 0.3 * (close - before) + 0.3 * volatility * rng.standard_normal(shape)
    high = np.maximum(opening, close) + np.abs(0.4 * volatility * rng.standard_normal(shape))
    low = np.minimum(opening, close) - np.abs(0.4 * volatility * rng.standard_normal(shape))
    vwap = np.clip(low + rng.uniform(0.25, 0.75, shape) * (high - low), low, high)
    # Trading rises with the size of the day's move, and differs between instruments.
    volume = rng.standard_normal(shape)
    volume *= 0.4
    volume += np.log(1e6) + rng.standard_normal(shape[1]) + np.minimum(np.abs(close - before) / volatility, 5.0) / 4
    for name, values in {"open": opening, "close": close, "vwap": vwap, "volume": volume}.items():
        bars[:, :, BARS.index(name)] = np.exp(values)
    # Of the rounded prices, so that they hold to the last digit.
    prices = [bars[:, :, BARS.index(name)] for name in ("open", "close", "vwap")]
    bars[:, :, BARS.index("high")] = np.maximum.reduce([np.exp(high).astype(np.float32), *prices])
    bars[:, :, BARS.index("low")] = np.minimum.reduce([np.exp(low).astype(np.float32), *prices])
    return bars
