"""Figures say what they show."""

from __future__ import annotations

import numpy as np
import pandas as pd

from alphakernels.plotting import training_report


def test_training_report(tmp_path):
    rng = np.random.default_rng(0)
    histories = {
        "pretraining": [{"train": 3.0 - i, "valid": 3.1 - i} for i in range(3)],
        "fine-tuning": [{"train": 1.0 / (i + 1), "valid": 1.1 / (i + 1)} for i in range(4)],
    }
    ic = pd.Series(rng.normal(0.02, 0.2, 200), index=pd.bdate_range("2020-01-01", periods=200))
    importances = pd.Series(rng.dirichlet(np.ones(30)), index=[f"F{i}" for i in range(30)])
    figure = training_report(histories, ic, importances, "a title")
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 4 and any("pretraining" in t for t in titles) and any("IC" in t for t in titles)
    assert all(axes.get_xlabel() for axes in figure.axes)
    curve = figure.axes[0].lines[0]
    assert list(curve.get_ydata()) == [3.0, 2.0, 1.0]
    figure.savefig(tmp_path / "r.png")
    assert (tmp_path / "r.png").stat().st_size > 10_000
