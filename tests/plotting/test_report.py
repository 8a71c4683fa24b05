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
    figure = training_report(histories, ic, "a title", importances=importances)
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 4 and any("pretraining" in t for t in titles) and any("IC" in t for t in titles)
    assert all(axes.get_xlabel() for axes in figure.axes)
    curve = figure.axes[0].lines[0]
    assert list(curve.get_ydata()) == [3.0, 2.0, 1.0]
    figure.savefig(tmp_path / "r.png")
    assert (tmp_path / "r.png").stat().st_size > 10_000


def test_what_a_sequence_model_shows(tmp_path):
    rng = np.random.default_rng(0)
    index = pd.MultiIndex.from_product([pd.bdate_range("2020-01-01", periods=50), [f"S{i}" for i in range(20)]])
    label = pd.Series(rng.normal(size=1000), index=index)
    score = label + 0.1 * pd.Series(rng.normal(size=1000), index=index)
    attention = pd.DataFrame(rng.dirichlet(np.ones(12), size=1000), index=index, columns=range(11, -1, -1))
    ic = pd.Series(rng.normal(size=50), index=index.levels[0])
    history = {"training": [{"train": 0.1 * i, "valid": 0.1 * i} for i in range(3)]}
    figure = training_report(history, ic, "a title", attention=attention, scored=(score, label), what="IC")
    curve, days, groups, _ = figure.axes
    assert curve.get_ylabel() == "IC" and curve.lines[-1].get_xdata()[0] == 3  # the best is the largest
    assert days.lines[0].get_ydata().sum() > 99.9 and days.get_xlim()[0] > days.get_xlim()[1]
    heights = [bar.get_height() for bar in groups.patches]
    assert len(heights) == 5 and heights == sorted(heights) and heights[0] < -1 < 1 < heights[-1]
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    figure.savefig(tmp_path / "r.png")
