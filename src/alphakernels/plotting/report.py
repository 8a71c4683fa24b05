"""The report of a training: learning curves, daily information coefficient, and what the model can say of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's palette: told apart by colour-blind readers too.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def learning_curves(axes: Axes, history: Sequence[Mapping[str, float]], title: str, what: str = "loss") -> None:
    """Loss by epoch of the evaluated sets "train" and "valid"; the best validation epoch is marked.

    Args:
        history: one mapping an epoch, with "train" and "valid".
        title: of the panel.
        what: is measured: "loss", of which less is better, or another quantity, of which more is.
    """
    epochs = np.arange(1, len(history) + 1)
    for name, colour in (("train", BLUE), ("valid", ORANGE)):
        values = [record[name] for record in history if name in record]
        if len(values) == len(epochs):
            axes.plot(epochs, values, marker="o", ms=4, color=colour, label=name)
            if name == "valid" and values:
                best = int((np.nanargmin if what == "loss" else np.nanargmax)(values))
                axes.plot(epochs[best], values[best], marker="o", ms=10, mfc="none", color=colour)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("epoch")
    axes.set_ylabel(what)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.margins(y=0.15)
    if len(history):
        axes.legend(frameon=False, fontsize=8)
    _plain(axes)


def daily_ic(axes: Axes, ic: pd.Series, window: int = 60, title: str = "Daily IC") -> None:
    """The IC of each day, its rolling mean over `window` days, and its mean.

    Args:
        ic: Series by day, correlation in [-1, 1].
    """
    axes.plot(ic.index, ic.to_numpy(), color=GREY, lw=0.4, alpha=0.7, label="daily")
    rolling = ic.rolling(window, min_periods=max(2, window // 4)).mean()
    axes.plot(ic.index, rolling.to_numpy(), color=BLUE, lw=1.4, label=f"mean of {window} days")
    axes.axhline(0, color="black", lw=0.6)
    axes.axhline(float(ic.mean()), color=ORANGE, lw=1.2, ls="--", label=f"mean {ic.mean():+.4f}")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("day")
    axes.set_ylabel("IC (correlation)")
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper left")
    axes.margins(y=0.2)
    axes.tick_params(axis="x", labelsize=8)
    _plain(axes)


def feature_importances(axes: Axes, importances: pd.Series, top: int = 15, title: str = "Feature importances") -> None:
    """The `top` largest importances as horizontal bars, in percent of their total.

    Args:
        importances: Series by feature name, summing to one.
    """
    largest = importances.sort_values(ascending=False).head(top)[::-1]
    axes.barh(range(len(largest)), 100 * largest.to_numpy(), color=BLUE, height=0.7)
    axes.set_yticks(range(len(largest)), [str(name) for name in largest.index], fontsize=8)
    axes.set_title(f"{title} (top {len(largest)} of {len(importances)})", fontsize=10)
    axes.set_xlabel("share of the attention masks [%]")
    _plain(axes)


def attention_profile(axes: Axes, attention: pd.DataFrame, title: str = "Attention over the days") -> None:
    """The mean attention weight by day back, with the middle half of the rows, and the even share as a reference.

    Args:
        attention: rows x days back (T - 1, ..., 0), each row summing to one.
    """
    back = attention.columns.to_numpy()
    low, high = attention.quantile([0.25, 0.75]).to_numpy() * 100
    axes.fill_between(back, low, high, color=BLUE, alpha=0.2, lw=0, label="middle half of the rows")
    axes.plot(back, attention.mean().to_numpy() * 100, color=BLUE, label="mean")
    axes.axhline(100 / len(back), color=GREY, lw=1, ls="--", label="even")
    axes.invert_xaxis()
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("days back")
    axes.set_ylabel("attention weight [%]")
    axes.legend(frameon=False, fontsize=8)
    axes.margins(y=0.2)
    _plain(axes)


def score_groups(axes: Axes, prediction: pd.Series, label: pd.Series, groups: int = 5) -> None:
    """The mean label of each day's instruments by group of score, lowest scores first, with two standard errors over the days.

    Args:
        prediction, label: Series by (datetime, instrument).
    """
    day = prediction.index.get_level_values(0)
    place = prediction.groupby(day).rank(pct=True, method="first")
    group = np.minimum((place * groups - 1e-9).astype(int), groups - 1)
    by_day = label.reindex(prediction.index).groupby([day, group]).mean().unstack()  # days x groups
    error = 2 * by_day.std() / np.sqrt(by_day.count())
    axes.bar(by_day.columns + 1, by_day.mean(), yerr=error, color=BLUE, width=0.7, error_kw={"lw": 1, "ecolor": GREY})
    axes.axhline(0, color="black", lw=0.6)
    axes.set_title("Label by group of score", fontsize=10)
    axes.set_xlabel(f"score, from lowest (1) to highest ({groups})")
    axes.set_ylabel("mean label")
    axes.xaxis.get_major_locator().set_params(integer=True)
    _plain(axes)


def training_report(
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    ic: pd.Series,
    title: str,
    *,
    importances: pd.Series | None = None,
    attention: pd.DataFrame | None = None,
    scored: tuple[pd.Series, pd.Series] | None = None,
    what: str = "loss",
) -> Figure:
    """One figure: a panel of learning curves for each phase, what there is beside it, and below the daily IC.

    Args:
        histories: by phase ("pretraining", "fine-tuning"), one mapping an epoch.
        ic: daily IC of the test segment.
        title: of the figure.
        importances: by feature, for `feature_importances`.
        attention: for `attention_profile`.
        scored: prediction and label, for `score_groups`.
        what: of the learning curves.

    Returns:
        A matplotlib Figure; `figure.savefig(path)` writes it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    figure.suptitle(title, fontsize=11)
    beside = [
        draw
        for draw, data in (
            (lambda axes: feature_importances(axes, importances), importances),
            (lambda axes: attention_profile(axes, attention), attention),
            (lambda axes: score_groups(axes, *scored), scored),
        )
        if data is not None
    ]
    grid = figure.add_gridspec(2, max(len(histories) + len(beside), 1))
    for position, (phase, history) in enumerate(histories.items()):
        learning_curves(figure.add_subplot(grid[0, position]), history, f"Learning curve: {phase}", what)
    for position, draw in enumerate(beside, start=len(histories)):
        draw(figure.add_subplot(grid[0, position]))
    daily_ic(figure.add_subplot(grid[1, :]), ic, title="Daily IC of the test segment")
    return figure
