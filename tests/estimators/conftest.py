"""What the tests of the sequence and graph estimators share: a small panel in both styles."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from alphakernels.data import PanelDataset

FIELDS, LAGS = 3, 6
SEGMENTS = {
    "train": ("2020-01-10", "2020-02-14"),
    "valid": ("2020-02-17", "2020-02-28"),
    "test": ("2020-03-02", "2020-03-20"),
}


def frame(missing=0.1, instruments=11, seed=0):
    """Rows named FIELD<lag>, feature-major, of series whose weighted past is the label; some rows are missing."""
    rng = np.random.default_rng(seed)
    days = pd.bdate_range("2020-01-01", "2020-03-20")
    series = rng.normal(size=(len(days), instruments, FIELDS)).astype(np.float32)  # [T, S, F]
    index = pd.MultiIndex.from_product([days, [f"S{i:02d}" for i in range(instruments)]], names=["datetime", "instrument"])
    windows = np.stack([series[np.maximum(np.arange(len(days)) - lag, 0)] for lag in range(LAGS - 1, -1, -1)], axis=-1)
    names = [f"{field}{lag}" for field in ("OPEN", "CLOSE", "VOLUME") for lag in range(LAGS - 1, -1, -1)]
    table = pd.DataFrame(windows.reshape(len(index), FIELDS * LAGS), index=index, columns=names)
    table["label"] = (windows[..., 0, -1] - windows[..., 1, -2] + 0.1 * rng.normal(size=windows.shape[:2])).reshape(-1).astype(np.float32)
    return table[rng.random(len(table)) >= missing]


def rows(table=None, **options):
    return PanelDataset(frame(**options) if table is None else table, segments=SEGMENTS)


def series(table=None, step_len=LAGS, **options):
    """The latest values alone, in windows."""
    table = frame(**options) if table is None else table
    latest = [name for name in table.columns if name.endswith("0")]
    return PanelDataset(table[[*latest, "label"]], segments=SEGMENTS).windows(step_len)


PANELS = SimpleNamespace(FIELDS=FIELDS, LAGS=LAGS, SEGMENTS=SEGMENTS, frame=frame, rows=rows, series=series)


@pytest.fixture
def panels():
    """The functions and sizes above."""
    return PANELS


@pytest.fixture(params=["rows", "series"])
def style(request):
    """Makes the dataset in one of the two styles: `style(table=None, **options)`."""
    return getattr(PANELS, request.param)


@pytest.fixture(autouse=True)
def small(one_thread):
    """These problems are too small for two threads."""
