"""Normalisation against Qlib's formulas written with pandas."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from alphakernels.data import RobustZScore, cs_rank_norm, cs_zscore


@pytest.fixture
def values() -> pd.Series:
    rng = np.random.default_rng(4)
    index = pd.MultiIndex.from_product([pd.bdate_range("2021-01-01", periods=7), list("ABCDE")], names=["datetime", "instrument"])
    series = pd.Series(rng.normal(size=35).round(1), index=index)  # rounded: with ties
    series.iloc[[3, 11]] = np.nan
    return series


def test_rank_norm(values):
    expected = (values.groupby(level="datetime").rank(pct=True) - 0.5) * 3.46
    pd.testing.assert_series_equal(cs_rank_norm(values), expected)


def test_zscore(values):
    expected = values.groupby(level="datetime").transform(lambda day: (day - day.mean()) / day.std())
    pd.testing.assert_series_equal(cs_zscore(values), expected)
    assert cs_zscore(values * 0 + 0.1).isna().all()


def test_robust_zscore():
    rng = np.random.default_rng(5)
    x = rng.normal(3, 2, size=(101, 4)).astype(np.float32)
    x[:, 2], x[5, 0] = 1.0, np.nan
    before = x.copy()
    ours = RobustZScore(clip=3.0).fit(x[:60]).transform(x)
    median = np.nanmedian(x[:60].astype(np.float64), axis=0)
    deviation = np.nanmedian(np.abs(x[:60] - median), axis=0)
    expected = np.clip((x - median) / ((deviation + 1e-12) * 1.4826), -3, 3)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
    assert (ours[:, 2] == 0).all() and np.isnan(ours[5, 0])
    np.testing.assert_array_equal(x, before)
