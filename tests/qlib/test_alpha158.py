"""Alpha158 against Qlib's own handler's loader, on a market with a late and a suspended stock."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("qlib")

from qlib.contrib.data.loader import Alpha158DL  # noqa: E402

from alphakernels.data import ALPHA158, alpha158, simulate_market  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
import provider  # noqa: E402

# In a process of its own: Qlib is not initialised twice where it records.
SCRIPT = """
import sys, qlib
from qlib.contrib.data.loader import Alpha158DL
from qlib.data import D
if __name__ == "__main__":
    qlib.init(provider_uri=sys.argv[1], region="us", kernels=1, logging_level=40)
    D.features(D.instruments("all"), Alpha158DL.get_feature_config()[0]).to_pickle(sys.argv[2])
"""


def test_every_feature_is_qlibs(tmp_path):
    names = Alpha158DL.get_feature_config()[1]
    assert tuple(names) == ALPHA158
    frame = simulate_market(6, 90, seed=3).frame
    frame["vwap"] = frame[["high", "low", "close"]].mean(axis=1)
    day = frame.index.get_level_values(0)
    late = frame.index.levels[1][1]
    instrument = frame.index.get_level_values(1)
    days = frame.index.levels[0]
    suspended = (instrument == frame.index.levels[1][2]) & (day >= days[50]) & (day < days[53])
    frame = frame[~((instrument == late) & (day < days[30])) & ~suspended].astype(np.float32)
    provider.write_frame(tmp_path / "data", frame)
    (tmp_path / "features.py").write_text(SCRIPT)
    subprocess.run([sys.executable, "features.py", "data", "features.pkl"], cwd=tmp_path, check=True, capture_output=True)
    theirs = pd.read_pickle(tmp_path / "features.pkl")
    theirs = theirs.swaplevel().sort_index().set_axis(names, axis=1)
    ours = alpha158(frame)
    ours.index = ours.index.set_levels(provider.names(frame), level=1)
    theirs = theirs.loc[ours.index]
    for name in names:
        a, b = ours[name].to_numpy(np.float64), theirs[name].to_numpy(np.float64)
        if name.startswith(("IMAX", "IMIN", "IMXD")):  # Qlib takes a day without a row for the highest, and the lowest
            gap = (theirs.index.get_level_values(1) == "S002") & (theirs.index.get_level_values(0) >= days[50])
            a, b = a[~gap], b[~gap]
        known = np.isfinite(b)
        assert (np.isfinite(a) == known).all(), name
        # Qlib computes in float32, and its regressions by sums that cancel.
        np.testing.assert_allclose(a[known], b[known], rtol=2e-3, atol=2e-4, err_msg=name)
    some = alpha158(frame, ["RANK5", "KLEN"], complete=True)
    assert list(some) == ["RANK5", "KLEN"] and np.isfinite(some).all().all()
    pd.testing.assert_frame_equal(some, alpha158(frame)[["RANK5", "KLEN"]].loc[some.index])
