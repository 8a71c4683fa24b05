"""One epoch of fit (training pass, evaluation of both sets) against Qlib's own class on the same data: rows and windows.

Qlib's time-series classes read through a DataLoader, one Python call a sample. They are measured as they come (n_jobs=10
worker processes; not the encoders, whose few days would go by in starting them) and reading in the training process (n_jobs=0), which
on two cores is the faster for them. What either side builds before training (TSDataSampler's index, ours) is not counted.
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

INSTRUMENTS = 200
CALENDAR = pd.bdate_range("2020-01-01", periods=120)
SEGMENTS = {"train": (CALENDAR[20], CALENDAR[99]), "valid": (CALENDAR[100], CALENDAR[-1])}
FEW = {"train": (CALENDAR[20], CALENDAR[25]), "valid": (CALENDAR[26], CALENDAR[27])}  # for models that take seconds for it


def frame(features: int, segments: dict = SEGMENTS) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    calendar = CALENDAR[CALENDAR <= segments["valid"][1]]
    index = pd.MultiIndex.from_product([calendar, [f"S{i:03d}" for i in range(INSTRUMENTS)]], names=["datetime", "instrument"])
    values = rng.normal(size=(len(index), features + 1)).astype(np.float32)
    columns = [("feature", f"f{i}") for i in range(features)] + [("label", "label")]
    return pd.DataFrame(values, index=index, columns=pd.MultiIndex.from_tuples(columns))


class Prepared:
    """Of a DatasetH or TSDatasetH what fit asks for, made beforehand."""

    def __init__(self, table: pd.DataFrame, step_len: int | None, segments: dict = SEGMENTS) -> None:
        self.segments = {**segments, "test": segments["valid"]}
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
        silent = SimpleNamespace(log_metrics=lambda **_: None)
        monkeypatch.setattr(module, "R", SimpleNamespace(get_recorder=lambda: silent, log_metrics=silent.log_metrics))
    # A new one each time, as ours makes a new network: some of Qlib's cannot be fitted twice.
    return lambda: getattr(module, name)(**options).fit(data, {}, save_path=str(tmp_path / "model"))


OPTIONS = {"n_epochs": 1, "batch_size": 800, "GPU": -1, "seed": 0}


# Ours, Qlib's file and class, options of both, the ratio to reach.
ENCODER = {"batch_size": 400}
WINDOWS = [
    ("ALSTMModel", "alstm", "ALSTM", {}, SEGMENTS, 5.0),
    ("GRUModel", "gru", "GRU", {}, SEGMENTS, 5.0),
    ("LSTMModel", "lstm", "LSTM", {}, SEGMENTS, 5.0),
    ("GATsModel", "gats", "GATs", {}, SEGMENTS, 5.0),
    ("LocalformerModel", "localformer", "LocalformerModel", ENCODER, FEW, 2.0),
    ("TransformerModel", "transformer", "TransformerModel", ENCODER, FEW, 2.0),
]


def ours(name: str, **options) -> estimators.Estimator:
    model = getattr(estimators, name)
    known = model._parameter_names()
    return model(progress=False, **{key: value for key, value in options.items() if key in known})


@pytest.mark.parametrize(("name", "module", "cls", "options", "segments", "target"), WINDOWS, ids=[row[0] for row in WINDOWS])
def test_windows(compare, name, module, cls, options, segments, target, monkeypatch, tmp_path) -> None:
    table, step_len, options = frame(20, segments), 20, {**OPTIONS, "d_feat": 20, **options}
    data, panel = Prepared(table, step_len, segments), PanelDataset(table, segments=segments).windows(step_len)
    model = ours(name, **options)
    peers = {
        f"Qlib, n_jobs={jobs}": theirs(f"pytorch_{module}_ts", cls, data, monkeypatch, tmp_path, n_jobs=jobs, **options)
        for jobs in ((0,) if segments is FEW else (10, 0))
    }
    # Qlib's workers are forks of this process: who writes next to its memory pays for the copies.
    compare(f"{name} on windows, epoch of fit", lambda: model.fit(panel), peers, targets=dict.fromkeys(peers, target), settle=True)


CONCEPTS = {"stock2concept": "concepts.npy", "stock_index": "stocks.npy", "base_model": "LSTM", "metric": "ic"}
ROWS = [
    ("ALSTMModel", "alstm", "ALSTM", {}, SEGMENTS, 1.7),
    ("GRUModel", "gru", "GRU", {}, SEGMENTS, 1.6),
    ("LSTMModel", "lstm", "LSTM", {}, SEGMENTS, 1.5),
    ("SFMModel", "sfm", "SFM", {"optimizer": "adam"}, SEGMENTS, 12.0),
    ("GATsModel", "gats", "GATs", {}, SEGMENTS, 2.2),
    ("HISTModel", "hist", "HIST", CONCEPTS, SEGMENTS, 1.8),
    ("LocalformerModel", "localformer", "LocalformerModel", ENCODER, FEW, 2.0),
    ("TransformerModel", "transformer", "TransformerModel", ENCODER, FEW, 2.0),
]


@pytest.mark.parametrize(("name", "module", "cls", "options", "segments", "target"), ROWS, ids=[row[0] for row in ROWS])
def test_rows(compare, name, module, cls, options, segments, target, monkeypatch, tmp_path) -> None:
    fields, lags = 6, 20
    table, options = frame(fields * lags, segments), {**OPTIONS, "d_feat": fields, **options}
    if cls == "HIST":
        np.save(tmp_path / "concepts.npy", np.random.default_rng(1).random((734, 733)) < 0.05)
        np.save(tmp_path / "stocks.npy", {f"S{i:03d}": i for i in range(INSTRUMENTS)})
        options |= {key: str(tmp_path / options[key]) for key in ("stock2concept", "stock_index")}
        monkeypatch.setattr("torch.get_device", lambda x: "cpu", raising=False)  # which it asks, and fails on CPU
    panel = PanelDataset(table, segments=segments)
    model = ours(name, **options)
    peer = theirs(f"pytorch_{module}", cls, Prepared(table, None, segments), monkeypatch, tmp_path, **options)
    compare(f"{name} on rows, T {lags}, epoch of fit", lambda: model.fit(panel), {"Qlib": peer}, targets={"Qlib": target})


TABNET = {"d_feat": 158, "batch_size": 4000, "vbs": 2000, "pretrain": False}
DNN = {"max_steps": 20, "eval_steps": 20, "batch_size": 2000, "pt_model_kwargs": {"input_dim": 158}, "scheduler": None}
TABULAR = [("TabNetModel", "tabnet", "TabnetModel", TABNET, 1.8), ("DNNModelPytorch", "nn", "DNNModelPytorch", DNN, 1.0)]


@pytest.mark.parametrize(("name", "module", "cls", "options", "target"), TABULAR, ids=[row[0] for row in TABULAR])
def test_tabular(compare, name, module, cls, options, target, monkeypatch, tmp_path) -> None:
    table, options = frame(158), {**OPTIONS, **options}
    if name == "DNNModelPytorch":
        options.pop("n_epochs")
    panel = PanelDataset(table, segments=SEGMENTS)
    model = ours(name, **options)
    peer = theirs(f"pytorch_{module}", cls, Prepared(table, None), monkeypatch, tmp_path, **options)
    what = "epoch of fit" if "n_epochs" in options else "20 steps of fit and an evaluation"
    compare(f"{name} on 158 features, {what}", lambda: model.fit(panel), {"Qlib": peer}, targets={"Qlib": target})


class PreparedWindows(Prepared, dataset_module.TSDatasetH):
    """Which the adaptor asks for."""


def test_general_adaptor_on_windows(compare, monkeypatch, tmp_path) -> None:
    table, step_len = frame(20), 20
    options = {**OPTIONS, "pt_model_kwargs": {"d_feat": 20, "hidden_size": 64, "num_layers": 2, "dropout": 0.0}}
    model = estimators.GeneralPTNN(progress=False, **options)
    panel = PanelDataset(table, segments=SEGMENTS).windows(step_len)
    data = PreparedWindows(table, step_len)
    peers = {
        f"Qlib, n_jobs={jobs}": theirs("pytorch_general_nn", "GeneralPTNN", data, monkeypatch, tmp_path, n_jobs=jobs, **options)
        for jobs in (10, 0)
    }
    compare("GeneralPTNN (GRU) on windows, epoch of fit", lambda: model.fit(panel), peers, targets=dict.fromkeys(peers, 5.0))
