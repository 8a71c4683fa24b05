"""Alpha158 against plain definitions, one instrument and one window at a time; tests/qlib holds it against Qlib's."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from alphakernels import use_backend
from alphakernels.data import ALPHA158, alpha158, panel_from_table, simulate_market
from alphakernels.ops.alpha158 import reference


@pytest.fixture
def bars():
    frame = simulate_market(5, 80, seed=2).frame
    frame = frame.assign(vwap=frame[["high", "low", "close"]].mean(axis=1))
    day, name = frame.index.codes
    return frame[~((name == 1) & (day < 33)) & ~((name == 2) & np.isin(day, (40, 41, 60)))]


def test_by_definition(bars):
    ours = alpha158(bars)
    assert tuple(ours) == ALPHA158 and len(set(ALPHA158)) == 158
    assert ours.index.equals(bars.sort_index().index)
    calendar = list(bars.index.levels[0])
    rng = np.random.default_rng(0)
    for _ in range(60):
        day, name = ours.index[rng.integers(len(ours))]
        rows = bars.xs(name, level=1)
        days = int(rng.choice([5, 10, 20, 30, 60]))
        begin = calendar.index(day) - days + 1
        window = rows.reindex(calendar).iloc[max(begin, calendar.index(rows.index[0])) : begin + days]
        close, row, found = window["close"], rows.loc[day], ours.loc[(day, name)]
        known = close.dropna()
        expected = {
            f"MA{days}": known.mean() / row["close"],
            f"MAX{days}": window["high"].max() / row["close"],
            f"MIN{days}": window["low"].min() / row["close"],
            f"RANK{days}": (known <= row["close"]).mean(),
            f"QTLD{days}": known.quantile(0.2) / row["close"],
            f"IMAX{days}": (np.nanargmax(window["high"]) + 1) / days,
            f"IMIN{days}": (np.nanargmin(window["low"]) + 1) / days,
            f"VMA{days}": window["volume"].mean() / row["volume"],
            "KLEN": (row["high"] - row["low"]) / row["open"],
        }
        x = np.flatnonzero(close.notna())
        if len(known) > 2:
            slope, level = np.polyfit(x, known, 1)
            expected |= {
                f"BETA{days}": slope / row["close"],
                f"RESI{days}": (row["close"] - slope * x[-1] - level) / row["close"],
                f"RSQR{days}": np.corrcoef(x, known)[0, 1] ** 2,
                f"STD{days}": known.std() / row["close"],
                f"CORR{days}": np.corrcoef(known, np.log(window["volume"].dropna() + 1))[0, 1],
            }
        for feature, value in expected.items():
            assert found[feature] == pytest.approx(value, rel=1e-4, abs=1e-6), feature


def test_wide_prices_pieces_and_order(bars, monkeypatch):
    names = ["RESI5", "KLEN", "IMXD60"]
    whole = alpha158(bars, names)
    assert list(whole) == names
    wide = {field: bars[field].unstack() for field in bars.columns}
    pd.testing.assert_frame_equal(alpha158(wide, names), whole, check_names=False)
    pd.testing.assert_frame_equal(alpha158(bars.sample(frac=1, random_state=0), names), whole)
    with use_backend("reference"):
        pd.testing.assert_frame_equal(alpha158(bars, names), whole, rtol=1e-6)
        monkeypatch.setattr(reference, "CHUNK", 700)
        pd.testing.assert_frame_equal(alpha158(bars, names), whole, rtol=1e-6)
    # What comes later changes nothing.
    cut = bars.index.levels[0][50]
    early = bars[bars.index.get_level_values(0) <= cut]
    pd.testing.assert_frame_equal(alpha158(early), alpha158(bars).loc[: str(cut)], check_exact=True)


def test_a_panel_of_it_and_what_is_refused(bars):
    panel = panel_from_table(bars, alpha158=True, features=["MA5", "STD5"], segments={"train": 0.7, "test": 0.3})
    assert panel.features == ("MA5", "STD5") and np.isfinite(panel.x).all()
    assert len(panel) < len(bars)  # the first day has no deviation
    with pytest.raises(ValueError, match="unknown feature 'MA7'; did you mean 'MA5'"):
        alpha158(bars, ["MA7"])
    with pytest.raises(ValueError, match="vwap"):
        alpha158(bars.drop(columns="vwap"))
    with pytest.raises(ValueError, match="no row has all 158 features; the prices have 1 days"):
        alpha158(bars.loc[[bars.index[0][0]]], complete=True)
    with pytest.raises(ValueError, match="Alpha158 is made from bars, the columns of a long table"):
        panel_from_table(bars["close"].unstack(), alpha158=True)
