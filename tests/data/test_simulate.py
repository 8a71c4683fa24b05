"""The simulated market: consistent bars, and a planted signal of the strength it says, which a model finds."""

from __future__ import annotations

import numpy as np
import pytest

from alphakernels.data import PanelDataset, price_windows, simulate_market
from alphakernels.estimators import TabNetModel
from alphakernels.training import ic_summary


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.3])
def test_the_signal_has_the_strength_it_says(strength):
    market = simulate_market(200, 400, seed=1, signal=strength)
    assert ic_summary(market.signal, market.forward_return)["ic"] == pytest.approx(strength, abs=0.015)


@pytest.mark.parametrize("sectors", [1, 8])
def test_the_cross_sectional_signal_has_the_strength_it_says(sectors):
    market = simulate_market(200, 400, seed=1, signal=0.0, cross_signal=0.3, sectors=sectors)
    assert ic_summary(market.cross_signal, market.forward_return)["ic"] == pytest.approx(0.3, abs=0.015)
    # By itself the instrument's own pattern says nothing: what it is worth changes its sign with the others' moves.
    assert abs(ic_summary(market.signal, market.forward_return)["ic"]) < 0.05  # 400 days are 400 moods: 0.3 / sqrt(400) is chance
    assert market.sectors.nunique() == sectors
    assert list(market.sectors.index) == list(market.frame.index.levels[1])


def test_both_signals():
    market = simulate_market(300, 300, seed=3, signal=0.2, cross_signal=0.3, sectors=6)
    both = 0.2 * market.signal + 0.3 * market.cross_signal
    found = [ic_summary(one, market.forward_return)["ic"] for one in (market.signal, market.cross_signal, both)]
    assert found[2] == pytest.approx(np.hypot(0.2, 0.3), abs=0.03)
    assert found[0] > 0.1 and found[1] > 0.2


def test_bad_sizes():
    for options, message in (
        ({"signal": 0.8, "cross_signal": 0.7}, "squares sum to less than 1, got 0.8 and 0.7"),
        ({"sectors": 6}, "sectors must be from 1 to 5"),
        ({"sectors": 2, "sector_share": 1.0}, "sector_share in"),
    ):
        with pytest.raises(ValueError, match=message):
            simulate_market(10, 5, **options)


def test_bars_are_consistent_and_seeded():
    market = simulate_market(23, 57, seed=2)
    f = market.frame
    assert len(f) == 23 * 57 and (f.dtypes == np.float32).all()
    for name in ("open", "close", "vwap"):
        assert (f["low"] <= f[name]).all() and (f[name] <= f["high"]).all()
    assert (f["volume"] > 0).all()
    assert f.equals(simulate_market(23, 57, seed=2).frame)
    assert not f.equals(simulate_market(23, 57, seed=3).frame)


def test_tabnet_finds_the_planted_signal():
    market = simulate_market(120, 500, seed=5, signal=0.3)
    windows = price_windows(market.frame, lags=21, complete=True)
    days = market.frame.index.levels[0]
    panel = PanelDataset(
        windows.assign(label=market.forward_return.reindex(windows.index)),
        segments={"train": (None, days[340]), "valid": (days[341], days[400]), "test": (days[401], None)},
    )
    panel = panel.cs_rank_norm().robust_zscore()
    model = TabNetModel(
        d_feat=None, out_dim=16, batch_size=2048, vbs=512, n_epochs=12, pretrain=False, lr=0.02, variant="paper",
        n_d=8, n_a=8, n_steps=3, early_stop=4, progress=False,
    )  # fmt: skip
    model.fit(panel)
    found = ic_summary(model.predict(panel, "test"), market.forward_return)["ic"]
    assert found > 0.5 * 0.3
