"""The real market sample that comes with the package, and a dataset made of it, ready to train on."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from importlib import resources
from typing import Any

import pandas as pd

from alphakernels.data.assemble import LabelNorm, assemble
from alphakernels.data.features import forward_returns, price_windows
from alphakernels.data.panel import PanelDataset

# GICS sectors.
SP500_SECTORS = {
    "AAPL": "Information Technology",
    "AMD": "Information Technology",
    "BAC": "Financials",
    "BBY": "Consumer Discretionary",
    "CVX": "Energy",
    "GE": "Industrials",
    "HD": "Consumer Discretionary",
    "JNJ": "Health Care",
    "JPM": "Financials",
    "KO": "Consumer Staples",
    "LLY": "Health Care",
    "MRK": "Health Care",
    "MSFT": "Information Technology",
    "PEP": "Consumer Staples",
    "PFE": "Health Care",
    "PG": "Consumer Staples",
    "RRC": "Energy",
    "UNH": "Health Care",
    "WMT": "Consumer Staples",
    "XOM": "Energy",
}

SAMPLE_SEGMENTS = {
    "pretrain": (None, "2014"),
    "pretrain_validation": ("2015", "2017"),
    "train": (None, "2014"),
    "valid": ("2015", "2017"),
    "test": ("2018", "2022"),
}


def load_sp500_sample() -> pd.DataFrame:
    """Daily closes of 20 large US stocks, 1990-01-02 to 2022-12-28.

    Adjusted closing prices in USD to six significant digits, 8,313 days without gaps. The figures are those of
    `sp500_dataset` in the skfolio package (1.12.2, BSD-3-Clause). The stocks were chosen because they are large
    today, so their returns flatter any long position: good for examples and checks, not for judging a strategy.

    Returns:
        float64 frame [8313, 20]: a DatetimeIndex named "datetime", columns the tickers in alphabetical order, named
        "instrument". `SP500_SECTORS` has their sectors.
    """
    file = resources.files("alphakernels.data") / "sample" / "sp500_20_close.csv.gz"
    with file.open("rb") as packed, gzip.open(packed) as text:
        closes = pd.read_csv(text, index_col=0, parse_dates=[0])
    return closes.rename_axis(index="datetime", columns="instrument")


def sample_panel(
    lags: int = 60,
    horizon: int = 1,
    label_norm: LabelNorm = "rank",
    *,
    delay: int = 1,
    start: str | None = None,
    segments: Mapping[str, Any] | None = None,
) -> PanelDataset:
    """The bundled sample as a dataset: windows of closes, and the forward return as label.

    Args:
        lags: closes a window; the features are CLOSE<lags-1>, ..., CLOSE0, over the latest close, then robust
            z-scored with the statistics of the segment "train".
        horizon, delay: of the label: see `forward_returns`.
        label_norm: "rank" or "zscore" among the day's stocks, or None for the return itself.
        start: first day of the dataset, such as "2005" for a smaller one.
        segments: instead of the default ones: train to 2014, valid 2015 to 2017, test 2018 to 2022; pretrain and
            pretrain_validation like train and valid. The labels of a segment's last `horizon` + `delay` days reach
            into the next one.

    Returns:
        A dataset of 20 stocks; the label is NaN on the last `horizon` + `delay` days.
    """
    closes = load_sp500_sample()
    features = price_windows({"close": closes}, lags=lags, complete=True)
    label = forward_returns(closes, horizon, delay)
    return assemble(features, label, SAMPLE_SEGMENTS if segments is None else segments, label_norm, start=start)
