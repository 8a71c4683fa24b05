"""One epoch of fit (training pass, evaluation of both sets) against Qlib's own class on the same data: rows and windows.

Qlib's time-series classes read through a DataLoader, one Python call a sample; it is measured in the training process
(n_jobs=0) and with two worker processes. What either side builds before training (TSDataSampler's index, ours) is not counted.
"""

from __future__ import annotations

import importlib
import logging
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from alphakernels import estimators
from alphakernels.data import PanelDataset

dataset_module = pytest.importorskip("qlib.data.dataset", reason="make bench installs Qlib, the peer")
logging.getLogger("qlib").setLevel(logging.ERROR)

DAYS, INSTRUMENTS = 100, 200
CALENDAR = pd.bdate_range("2020-01-01", periods=DAYS + 20)
SEGMENTS = {"train": (CALENDAR[20], CALENDAR[99]), "valid": (CALENDAR[100], CALENDAR[-1])}


def frame(features: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    index = pd.MultiIndex.from_product([CALENDAR, [f"S{i:03d}" for i in range(INSTRUMENTS)]], names=["datetime", "instrument"])
    values = rng.normal(size=(len(index), features + 1)).astype(np.float32)
    columns = [("feature", f"f{i}") for i in range(features)] + [("label", "label")]
    return pd.DataFrame(values, index=index, columns=pd.MultiIndex.from_tuples(columns))


class Prepared:
    """Of a DatasetH or TSDatasetH what fit asks for, made beforehand."""

    segments = {**SEGMENTS, "test": SEGMENTS["valid"]}

    def __init__(self, table: pd.DataFrame, step_len: int | None) -> None:
        self.parts = {}
        for name, bounds in self.segments.items():
            self.parts[name] = table.loc[slice(*bounds)]
            if step_len is not None:
                self.parts[name] = dataset_module.TSDataSampler(
                    table.loc[: bounds[1]].copy(), *bounds, step_len=step_len, fillna_type="none", dtype="float32"
                )

    def prepare(self, segments, col_set=None, data_key=None):
        return self.parts[segments] if isinstance(segments, str) else [self.parts[name] for name in segments]


def theirs(module: str, name: str, data: Prepared, monkeypatch, tmp_path, **options):
    module = importlib.import_module(f"qlib.contrib.model.{module}")
    if hasattr(module, "R"):  # no experiment is running that could record
        monkeypatch.setattr(module, "R", SimpleNamespace(get_recorder=lambda: SimpleNamespace(log_metrics=lambda **_: None)))
    model = getattr(module, name)(**options)
    return lambda: model.fit(data, {}, save_path=str(tmp_path / "model.pt"))


OPTIONS = {"n_epochs": 1, "batch_size": 800, "GPU": -1, "seed": 0}


@pytest.mark.parametrize("name", ["ALSTM", "GRU", "LSTM"])
def test_windows(compare, name, monkeypatch, tmp_path) -> None:
    table, step_len = frame(20), 20
    data, panel = Prepared(table, step_len), PanelDataset(table, segments=SEGMENTS).windows(step_len)
    model = getattr(estimators, f"{name}Model")(d_feat=20, progress=False, **OPTIONS)
    peers = {
        f"Qlib, n_jobs={jobs}": theirs(f"pytorch_{name.lower()}_ts", name, data, monkeypatch, tmp_path, d_feat=20, n_jobs=jobs, **OPTIONS)
        for jobs in ((0, 2) if name == "ALSTM" else (0,))
    }
    compare(f"{name} on windows, epoch of fit", lambda: model.fit(panel), peers, targets=dict.fromkeys(peers, 5.0))


ROWS = [("ALSTM", "alstm", {}, 1.7), ("GRU", "gru", {}, 1.6), ("LSTM", "lstm", {}, 1.5), ("SFM", "sfm", {"optimizer": "adam"}, 12.0)]


@pytest.mark.parametrize(("name", "module", "options", "target"), ROWS, ids=lambda value: value if isinstance(value, str) else "")
def test_rows(compare, name, module, options, target, monkeypatch, tmp_path) -> None:
    fields, lags = 6, 20
    table = frame(fields * lags)
    options = {**OPTIONS, **options}
    model = getattr(estimators, f"{name}Model")(d_feat=fields, progress=False, **options)
    panel = PanelDataset(table, segments=SEGMENTS)
    peer = theirs(f"pytorch_{module}", name, Prepared(table, None), monkeypatch, tmp_path, d_feat=fields, **options)
    compare(f"{name} on rows, T {lags}, epoch of fit", lambda: model.fit(panel), {"Qlib": peer}, targets={"Qlib": target})


class PreparedWindows(Prepared, dataset_module.TSDatasetH):
    """Which the adaptor asks for."""


def test_general_adaptor_on_windows(compare, monkeypatch, tmp_path) -> None:
    table, step_len = frame(20), 20
    options = {**OPTIONS, "pt_model_kwargs": {"d_feat": 20, "hidden_size": 64, "num_layers": 2, "dropout": 0.0}}
    model = estimators.GeneralPTNN(progress=False, **options)
    panel = PanelDataset(table, segments=SEGMENTS).windows(step_len)
    peer = theirs("pytorch_general_nn", "GeneralPTNN", PreparedWindows(table, step_len), monkeypatch, tmp_path, n_jobs=0, **options)
    compare("GeneralPTNN (GRU) on windows, epoch of fit", lambda: model.fit(panel), {"Qlib": peer}, targets={"Qlib": 5.0})
