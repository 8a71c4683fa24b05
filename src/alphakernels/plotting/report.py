"""The report of a training: learning curves, daily information coefficient, feature importances."""

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


def learning_curves(axes: Axes, history: Sequence[Mapping[str, float]], title: str) -> None:
    """Loss by epoch of the evaluated sets "train" and "valid"; the best validation epoch is marked.

    Args:
        history: one mapping an epoch, with "train" and "valid".
        title: of the panel.
    """
    epochs = np.arange(1, len(history) + 1)
    for name, colour in (("train", BLUE), ("valid", ORANGE)):
        values = [record[name] for record in history if name in record]
        if len(values) == len(epochs):
            axes.plot(epochs, values, marker="o", ms=4, color=colour, label=name)
            if name == "valid" and values:
                best = int(np.nanargmin(values))
                axes.plot(epochs[best], values[best], marker="o", ms=10, mfc="none", color=colour)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
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


def training_report(
    histories: Mapping[str, Sequence[Mapping[str, float]]], ic: pd.Series, importances: pd.Series, title: str
) -> Figure:
    """One figure: a panel of learning curves for each phase, the daily IC, the feature importances.

    Args:
        histories: by phase ("pretraining", "fine-tuning"), one mapping an epoch.
        ic: daily IC of the test segment.
        importances: by feature.
        title: of the figure.

    Returns:
        A matplotlib Figure; `figure.savefig(path)` writes it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.add_gridspec(2, max(len(histories), 1) + 1)
    for position, (phase, history) in enumerate(histories.items()):
        learning_curves(figure.add_subplot(grid[0, position]), history, f"Learning curve: {phase}")
    feature_importances(figure.add_subplot(grid[0, -1]), importances)
    daily_ic(figure.add_subplot(grid[1, :]), ic, title="Daily IC of the test segment")
    return figure
