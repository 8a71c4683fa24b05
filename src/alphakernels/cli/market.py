"""The full-market story: a simulated market of thousands of stocks, a graph of all of them on each day, on a laptop's memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import typer

from alphakernels.data import PanelDataset, SimulatedMarket, WindowDataset, simulate_market
from alphakernels.estimators import Estimator
from alphakernels.training import ic_summary

from ._run import Record, losses_table, peak_memory

DAYS = 600  # the market's mood is one number a day, of which 360 are trained on
STEP_LEN = 20
STRENGTH = 0.3  # of the planted cross-sectional signal
MARKET_VOLATILITY = 0.01  # half of a stock's own: what one stock did says little of what the market did
# A layer of 16 is enough for what is planted, and a day a step gives the many small steps that finding the mood takes.
OPTIONS = {"hidden_size": 16, "num_layers": 1, "n_epochs": 10, "lr": 5e-3, "days_per_step": 1, "metric": "ic"}


def returns_panel(market: SimulatedMarket, step_len: int = STEP_LEN) -> WindowDataset:
    """The latest day's return, the range of its prices and its volume, by stock, in windows; the label is the return to come.

    Each is in units of its own spread over the first 60% of the days, the segment "train".
    """
    wide = {name: np.log(market.frame[name].unstack()) for name in ("close", "high", "low", "volume")}
    features = {
        "RETURN": wide["close"].diff().fillna(0.0),
        "RANGE": wide["high"] - wide["low"],
        "VOLUME": wide["volume"] - wide["volume"].mean(),
    }
    days = wide["close"].index
    train = int(0.6 * len(days))
    columns = {}
    for name, values in features.items():
        known = values.iloc[:train].to_numpy()
        columns[name] = ((values - known.mean()) / known.std()).to_numpy(np.float32).reshape(-1)
    frame = pd.DataFrame({**columns, "label": market.forward_return.to_numpy()}, index=market.frame.index)
    valid = int(0.8 * len(days))
    segments = {
        "train": (days[step_len], days[train - 1]),
        "valid": (days[train], days[valid - 1]),
        "test": (days[valid], None),
    }
    return PanelDataset(frame, segments=segments).cs_zscore().windows(step_len)


def market_story(estimator: type[Estimator], options: Mapping[str, Any], stocks: int, epochs: int | None = None) -> None:
    """Trains on a simulated market, day by day, and says what it found of what was planted, in how much time and memory."""
    begin = time.perf_counter()
    market = simulate_market(stocks, DAYS, seed=1, signal=0.0, cross_signal=STRENGTH, market_volatility=MARKET_VOLATILITY)
    dataset = returns_panel(market)
    typer.echo(f"market     simulated, {dataset}")
    record = Record()
    model = estimator(**{**options, **OPTIONS, "n_epochs": epochs or OPTIONS["n_epochs"]})
    model.fit(dataset, callbacks=[record])
    typer.echo(losses_table(record.histories))
    found = ic_summary(model.predict(dataset), market.forward_return)["ic"]
    planted = ic_summary(market.cross_signal.loc[dataset.days[int(0.8 * DAYS)] :], market.forward_return)["ic"]
    typer.echo(
        f"test IC {found:+.4f}, of the planted cross-sectional signal {planted:+.4f}: "
        f"{time.perf_counter() - begin:.0f} s, peak memory {peak_memory()}; "
        f"one [N, N, 2H] tensor of the usual formulation would be {stocks**2 * 2 * model.hidden_size * 4 / 1e9:.1f} GB\n"
    )
