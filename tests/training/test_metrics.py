"""IC and Rank IC by day against scipy, one day at a time."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from alphakernels.training import ic_by_day, ic_summary, rank_ic_by_day

scipy_stats = pytest.importorskip("scipy.stats")


def panel(days=11, instruments=17, seed=3):
    rng = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product(
        [pd.bdate_range("2020-01-01", periods=days), [f"S{i:02d}" for i in range(instruments)]],
        names=["datetime", "instrument"],
    )
    prediction = pd.Series(rng.normal(size=len(index)).round(1), index=index)  # rounded: ties
    label = pd.Series(0.3 * prediction.to_numpy() + rng.normal(size=len(index)), index=index)
    return prediction, label


@pytest.mark.parametrize(
    ("ours", "peer"),
    [
        (ic_by_day, lambda a, b: scipy_stats.pearsonr(a, b)[0]),
        (rank_ic_by_day, lambda a, b: scipy_stats.spearmanr(a, b)[0]),
    ],
)
def test_equals_scipy_day_by_day(ours, peer):
    prediction, label = panel()
    label.iloc[::7] = np.nan
    prediction.iloc[5::31] = np.inf
    shuffled = np.random.default_rng(0).permutation(len(prediction))
    got = ours(prediction.iloc[shuffled], label)
    assert got.index.is_monotonic_increasing
    for day, value in got.items():
        pair = np.c_[prediction.xs(day), label.xs(day)]
        pair = pair[np.isfinite(pair).all(axis=1)]
        assert value == pytest.approx(peer(pair[:, 0], pair[:, 1]), abs=1e-12)


def test_undefined_days_are_nan_and_left_out_of_the_summary():
    prediction, label = panel(days=5)
    days = prediction.index.get_level_values(0)
    first, second, third = days.unique()[:3]
    prediction[days == first] = 0.1  # constant, and 0.1 is not exact in binary
    label[days == second] = np.nan
    label[(days == third) & (np.arange(len(label)) % 17 > 0)] = np.nan  # one pair left
    for ours, name in ((ic_by_day, "ic"), (rank_ic_by_day, "rank_ic")):
        daily = ours(prediction, label)
        assert daily.isna().to_list() == [True, True, True, False, False]
        assert ic_summary(prediction, label)[name] == pytest.approx(daily.dropna().mean())
    summary = ic_summary(prediction, label)
    assert set(summary) == {"ic", "icir", "rank_ic", "rank_icir"}
    daily = ic_by_day(prediction, label)
    assert summary["icir"] == pytest.approx(daily.mean() / daily.std())


def test_nothing_defined_gives_nan():
    prediction, label = panel(days=2)
    assert all(np.isnan(v) for v in ic_summary(prediction, label * np.nan).values())


def test_labels_are_aligned_and_keys_checked():
    prediction, label = panel(days=3)
    pd.testing.assert_series_equal(ic_by_day(prediction, label), ic_by_day(prediction, label.iloc[::-1]))
    with pytest.raises(ValueError, match="the label must have one row a .* twice"):
        ic_by_day(prediction, pd.concat([label, label.iloc[:1]]))
    with pytest.raises(TypeError, match="MultiIndex, got RangeIndex"):
        ic_by_day(prediction.reset_index(drop=True), label)
