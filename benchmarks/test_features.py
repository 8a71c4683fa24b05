"""Features out of bars, with the label: Alpha158 and Alpha360 against Qlib's handlers, which read the same bars from Qlib's files. Once each:
Qlib takes a minute. Its handlers run as they come, but for the infer processors that Alpha360 has by default, which would take most of an
hour and are no features."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from alphakernels.data import alpha158, cs_zscore, forward_returns, price_windows, simulate_market
from alphakernels.data.features import ALPHA360_FIELDS

INSTRUMENTS, DAYS = 300, 2_500
pytest.importorskip("qlib.contrib.data.handler", reason="make bench installs Qlib, the peer")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "qlib"))
import provider  # noqa: E402


@pytest.fixture(scope="module")
def bars(tmp_path_factory):
    """Bars by (datetime, instrument), which Qlib then has as well."""
    import qlib

    frame = simulate_market(INSTRUMENTS, DAYS, seed=3).frame
    frame["vwap"] = frame[["high", "low", "close"]].mean(axis=1)
    frame = frame.astype(np.float32)
    folder = tmp_path_factory.mktemp("market") / "data"
    provider.write_frame(folder, frame)
    qlib.init(provider_uri=str(folder), region="us", kernels=torch.get_num_threads(), logging_level=40)
    return frame


@pytest.mark.parametrize(
    ("name", "ours", "columns"),
    [
        ("Alpha158", alpha158, 158),
        ("Alpha360", lambda bars: price_windows(bars, ALPHA360_FIELDS, 60, denominator="close"), 360),
    ],
    ids=["Alpha158", "Alpha360"],
)
def test_features(compare, device, bars, name, ours, columns) -> None:
    from qlib.contrib.data import handler
    from qlib.data.cache import H

    if device.type != "cpu":
        pytest.skip("features are made on the CPU")
    kind = getattr(handler, name)
    made = []

    def qlibs():
        H.clear()
        made[:] = [kind(instruments="all", infer_processors=[])]

    ours(bars)
    compare(
        f"{name}, {INSTRUMENTS} stocks x {DAYS} days",
        lambda: (ours(bars), cs_zscore(forward_returns(bars["close"]))),
        {"Qlib's handler": qlibs},
        moved=4.0 * len(bars) * (columns + len(bars.columns)),
        targets={"Qlib's handler": 20.0},
        rounds=1,
    )
    # The label, which is known up to two days before the last, and the features.
    assert made[0].fetch(data_key="learn").shape == (len(bars) - 2 * INSTRUMENTS, columns + 1)
