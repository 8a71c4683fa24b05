"""GATs and HIST against Qlib's classes, day by day in Qlib's shuffled order, from a pretrained base, in float64.

Qlib copies a base of the default sizes into its network, a random one without model_path; so that other sizes can be compared,
its base is made with the sizes of the model, and both read the same file.
"""

from __future__ import annotations

import functools
import importlib

import numpy as np
import pandas as pd
import pytest
import torch

from alphakernels import estimators
from alphakernels.data import PanelDataset

dataset_module = pytest.importorskip("qlib.data.dataset")

FIELDS, LAGS = 3, 8
SEGMENTS = {"train": ("2020-01-20", "2020-02-21"), "valid": ("2020-02-24", "2020-03-06"), "test": ("2020-03-09", "2020-03-18")}
SIZES = {"d_feat": FIELDS, "hidden_size": 8, "num_layers": 2}
OPTIONS = {**SIZES, "n_epochs": 3, "lr": 0.01, "GPU": -1, "seed": 5}
CURVE, SCORES = 1e-4, 1e-5


def frame(instruments=17, missing=0.2):
    """Days of different sizes; one stock's label is missing at times."""
    rng = np.random.default_rng(0)
    index = pd.MultiIndex.from_product(
        [pd.bdate_range("2020-01-01", "2020-03-18"), [f"S{i:02d}" for i in range(instruments)]], names=["datetime", "instrument"]
    )
    x = rng.normal(size=(len(index), FIELDS * LAGS)).astype(np.float32)
    y = (x[:, 0] - x[:, LAGS] * x[:, -1] + 0.3 * rng.normal(size=len(index))).astype(np.float32)
    y[rng.random(len(y)) < 0.05] = np.nan
    columns = [("feature", f"f{i}") for i in range(x.shape[1])] + [("label", "label")]
    table = pd.DataFrame(np.c_[x, y], index=index, columns=pd.MultiIndex.from_tuples(columns))
    return table[rng.random(len(table)) >= missing]


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A file with a base's weights, and Qlib's modules made to read it at these sizes."""

    def make(module, kind):
        original = importlib.import_module(f"qlib.contrib.model.pytorch_{kind.lower()}")
        module = importlib.import_module(f"qlib.contrib.model.{module}")
        cls = getattr(original, f"{kind}Model")
        monkeypatch.setattr(module, f"{kind}Model", functools.partial(cls, **SIZES))
        torch.manual_seed(9)
        torch.save(cls(**SIZES).state_dict(), tmp_path / "base.pkl")
        return module, str(tmp_path / "base.pkl")

    return make


def compare(model, theirs, data, their_data, folder):
    scores, their_scores = {}, {}
    theirs.fit(their_data, their_scores, save_path=str(folder / "model.pt"))
    model.fit(data, scores)
    for name in ("train", "valid"):
        assert len(scores[name]) == OPTIONS["n_epochs"]
        np.testing.assert_allclose(scores[name], their_scores[name], rtol=CURVE)
    predicted, expected = model.predict(data), theirs.predict(their_data)
    assert predicted.index.equals(expected.index)
    np.testing.assert_allclose(predicted, expected, rtol=SCORES, atol=SCORES * expected.std())


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_gats(kind, base, tmp_path, in_float64, rows_of_qlib):
    table = frame()
    with in_float64():
        module, path = base("pytorch_gats", kind)
        options = {**OPTIONS, "base_model": kind, "model_path": path}
        ours = estimators.GATsModel(**options, progress=False)
        compare(ours, module.GATs(**options), PanelDataset(table, segments=SEGMENTS), rows_of_qlib(table, SEGMENTS), tmp_path)
        loaded = estimators.GATsModel(**options).load_qlib_checkpoint(tmp_path / "model.pt", FIELDS * LAGS)
        data = PanelDataset(table, segments=SEGMENTS)
        np.testing.assert_allclose(loaded.predict(data), ours.predict(data), rtol=SCORES, atol=1e-6)


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_hist(kind, base, tmp_path, in_float64, monkeypatch, rows_of_qlib):
    table = frame()
    stocks = sorted(table.index.levels[1])
    matrix = (np.random.default_rng(2).random((734, 6)) < 0.4).astype(np.float32)
    np.save(tmp_path / "concepts.npy", matrix)
    np.save(tmp_path / "index.npy", {name: 3 * i for i, name in enumerate(stocks)})
    with in_float64():
        module, path = base("pytorch_hist", kind)
        # The original asks for the GPU's number, and sums a day's concepts in float32.
        monkeypatch.setattr(module.torch, "get_device", lambda x: "cpu", raising=False)
        options = {
            **OPTIONS, "base_model": kind, "model_path": path, "metric": "ic",
            "stock2concept": str(tmp_path / "concepts.npy"), "stock_index": str(tmp_path / "index.npy"),
        }  # fmt: skip
        ours = estimators.HISTModel(**options, default_row=733, progress=False)
        compare(ours, module.HIST(**options), PanelDataset(table, segments=SEGMENTS), rows_of_qlib(table, SEGMENTS), tmp_path)
