"""Price windows, forward returns and the bundled sample against plain pandas."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from alphakernels.data import forward_returns, load_sp500_sample, price_windows, sample_panel


@pytest.fixture
def closes() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    days = pd.bdate_range("2020-01-01", periods=40, name="datetime")
    frame = pd.DataFrame(np.exp(rng.normal(0, 0.02, (40, 5)).cumsum(0)), index=days, columns=list("ABCDE"))
    return frame.rename_axis(columns="instrument")


@pytest.mark.parametrize("complete", [False, True])
def test_windows_are_lags_over_the_latest_close(closes, complete):
    closes.iloc[7, 2] = np.nan
    windows = price_windows({"close": closes}, lags=6, complete=complete)
    assert list(windows.columns) == [f"CLOSE{lag}" for lag in (5, 4, 3, 2, 1, 0)]
    for lag in range(6):
        expected = (closes.shift(lag) / closes).stack().rename("x")
        both = pd.concat([windows[f"CLOSE{lag}"].rename("ours"), expected], axis=1).reindex(windows.index)
        np.testing.assert_allclose(both["ours"], both["x"], rtol=1e-6)
    if complete:
        assert not windows.isna().any().any()
        expected_rows = (closes.notna().rolling(6).sum() == 6).stack()
        assert len(windows) == int(expected_rows.sum())
        assert windows.index.equals(expected_rows[expected_rows].index)


def test_forward_returns_are_qlibs_label(closes):
    expected = closes.shift(-2) / closes.shift(-1) - 1
    np.testing.assert_allclose(forward_returns(closes, 1, 1).to_numpy(), expected.to_numpy(), rtol=1e-6)


def test_the_sample_is_ready_to_train_on():
    closes = load_sp500_sample()
    assert closes.shape == (8313, 20) and not closes.isna().any().any()
    panel = sample_panel(lags=10, start="2010")
    assert set(panel.segments) == {"pretrain", "pretrain_validation", "train", "valid", "test"}
    for name in panel.segments:
        segment = panel.segment(name)
        assert np.isfinite(segment.x).all()
        assert segment.x.shape[1] == 10 and len(segment.y) == len(segment.x)
    # The label is tomorrow's return after today's close is known, ranked within its day.
    test = panel.segment("test")
    label = pd.Series(test.y, index=test.index)
    day = closes.loc["2019-05-06":"2019-05-09"]
    raw = day.iloc[2] / day.iloc[1] - 1
    assert label.loc["2019-05-06"].rank().tolist() == raw.rank().tolist()
