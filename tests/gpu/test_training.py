"""Estimators and `accelerate` on a GPU: they train there as on the CPU, save, load and predict on either."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import alphakernels as ak
from alphakernels import estimators
from alphakernels.data import PanelDataset
from alphakernels.testing import Tolerance, assert_close

FIELDS, LAGS = 3, 6
SEGMENTS = {"train": ("2020-01-01", "2020-02-14"), "valid": ("2020-02-17", "2020-02-28"), "test": ("2020-03-02", "2020-03-20")}
NEAR = Tolerance(relative=2e-3, of_largest=2e-3)  # after some steps of Adam, which magnifies the rounding of small gradients
ROWS = {"n_epochs": 2, "batch_size": 64, "lr": 1e-3, "seed": 0, "progress": False}
SEQUENCE = {**ROWS, "d_feat": FIELDS, "hidden_size": 16, "num_layers": 2}
DAYS = {key: value for key, value in SEQUENCE.items() if key != "batch_size"}
ENCODER = {**ROWS, "d_feat": FIELDS, "d_model": 16, "nhead": 2, "num_layers": 1}
TABNET = {"d_feat": None, "out_dim": 8, "vbs": 32, "pretrain_n_epochs": 1}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(FIELDS * LAGS, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x):
        return self.layers(x)


MODELS = {
    "TabNetModel": {**ROWS, **TABNET, "variant": "paper", "n_d": 8, "n_a": 8},
    "GRUModel": SEQUENCE,
    "LSTMModel": SEQUENCE,
    "ALSTMModel": SEQUENCE,
    "LocalformerModel": {**ENCODER, "dropout": 0.0},
    "TransformerModel": {**ENCODER, "dropout": 0.0},
    "SFMModel": {**ROWS, "d_feat": FIELDS, "hidden_size": 16, "freq_dim": 4, "optimizer": "adam", "dropout_W": 0.0, "dropout_U": 0.0},
    "GATsModel": {**DAYS, "days_per_step": 2},
    "HISTModel": {**DAYS, "days_per_step": 2, "stock2concept": {f"S{i:02d}": "ab"[i % 2] for i in range(9)}},
    "GeneralPTNN": {**ROWS, "pt_model_uri": Net},
    "DNNModelPytorch": {"pt_model_uri": Net, "max_steps": 20, "batch_size": 64, "eval_steps": 5, "seed": 0, "progress": False},
}


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    days = pd.bdate_range("2020-01-01", "2020-03-20")
    index = pd.MultiIndex.from_product([days, [f"S{i:02d}" for i in range(11)]], names=["datetime", "instrument"])
    x = rng.normal(size=(len(index), FIELDS * LAGS)).astype(np.float32)
    frame = pd.DataFrame(x, index=index, columns=[f"{field}{lag}" for field in ("A", "B", "C") for lag in range(LAGS - 1, -1, -1)])
    frame["label"] = x[:, LAGS - 1] + 0.1 * rng.normal(size=len(x)).astype(np.float32)
    return PanelDataset(frame, label="label", segments=SEGMENTS)


def test_every_estimator_is_here():
    assert set(MODELS) == {name for name in estimators.__all__ if name != "Estimator"}


@pytest.mark.parametrize("name", MODELS)
def test_a_fit_on_the_gpu_is_one_on_the_cpu(dataset, device, name, tmp_path):
    cls = getattr(estimators, name)
    here, there = (cls(**MODELS[name], GPU=gpu) for gpu in (-1, device.index))
    before = torch.cuda.memory_allocated()
    there.fit(dataset)
    assert next(there.module_.parameters()).device == device
    assert torch.cuda.memory_allocated() >= before
    if name != "TabNetModel":  # whose pretraining hides other entries on another device
        here.fit(dataset)
        for segment, scores in here.evals_result_.items():
            np.testing.assert_allclose(there.evals_result_[segment], scores, rtol=2e-3)
        assert_close("scores", *(torch.tensor(m.predict(dataset).to_numpy()) for m in (there, here)), tolerance=NEAR)
    scores = there.predict(dataset)
    assert scores.notna().all()
    there.save(tmp_path / "model.safetensors")
    loaded = {gpu: cls.load(tmp_path / "model.safetensors", device=gpu) for gpu in (-1, device.index)}
    pd.testing.assert_series_equal(loaded[device.index].predict(dataset), scores)
    on_cpu = loaded[-1].predict(dataset)
    assert_close("on the CPU", *(torch.tensor(series.to_numpy()) for series in (on_cpu, scores)), tolerance=NEAR)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("GATsModel", "HISTModel")])
def test_captured_steps_train_as_those_that_are_not(dataset, device, name, caplog):
    options = {**MODELS[name], "n_epochs": 6} if "n_epochs" in MODELS[name] else MODELS[name]
    scores = {}
    for capture in (True, False):
        model = getattr(estimators, name)(**options, GPU=device.index)
        with caplog.at_level("INFO", "alphakernels.training"):
            caplog.clear()
            model.fit(dataset, capture=capture)
        assert ("replayed as a CUDA graph" if capture else "capture=False") in caplog.text, caplog.text
        scores[capture] = torch.tensor(model.predict(dataset).to_numpy())
    assert_close("scores", scores[True], scores[False], tolerance=NEAR)


@pytest.mark.parametrize("name", ["ALSTMModel", "LocalformerModel"])
def test_dropout_is_captured(dataset, device, caplog, name):
    with caplog.at_level("INFO", "alphakernels.training"):
        getattr(estimators, name)(**{**MODELS[name], "dropout": 0.3}, GPU=device.index).fit(dataset)
    assert "replayed as a CUDA graph" in caplog.text


def test_a_replay_draws_another_mask(device):
    layer, x = ak.nn.GRU(4, 16, 2, batch_first=True, dropout=0.5).to(device), torch.randn(8, 3, 4, device=device)
    stream, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        layer(x)
    torch.cuda.synchronize(device)
    with torch.cuda.graph(graph, stream=stream):
        out, _ = layer(x)
    found = []
    for _ in range(2):
        graph.replay()
        found.append(out.clone())
    assert not torch.equal(*found)


class Waits(nn.Module):
    """Asks the host for a number in the midst of a step, and drops out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(FIELDS * LAGS, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 1))

    def forward(self, x):
        return self.layers(x) * (1 if x.sum().item() < 1e9 else 2)


def test_a_step_that_cannot_be_captured_goes_on(dataset, device, caplog):
    before = torch.cuda.current_stream(device)
    model = estimators.GeneralPTNN(**{**ROWS, "n_epochs": 4}, pt_model_uri=Waits, GPU=device.index)
    with caplog.at_level("INFO", "alphakernels.training"):
        model.fit(dataset)
    assert "capturing failed" in caplog.text
    assert torch.cuda.current_stream(device) == before
    assert np.isfinite(model.predict(dataset)).all()
    torch.nn.functional.dropout(torch.ones(4, device=device))  # the generator has left the capture too


@pytest.mark.parametrize("name", ["GRUModel", "LSTMModel", "ALSTMModel", "GATsModel"])
def test_windows(device, name):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 5, FIELDS)).astype(np.float32)
    dates = pd.bdate_range("2020-01-01", periods=30).repeat(10)
    model = getattr(estimators, name)(**MODELS[name], GPU=device.index).fit(x, x[:, -1, 0], dates=dates)
    assert np.isfinite(model.predict(x, dates=dates)).all()


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 16, 2, batch_first=True)
        self.lstm = nn.LSTM(16, 16, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.out = nn.Linear(16, 1)

    def forward(self, x):
        return self.out(self.encoder(self.lstm(self.gru(x)[0])[0])[:, -1]).squeeze(-1)


def test_accelerate(device):
    torch.manual_seed(0)
    theirs = Mixed().to(device)
    ours = copy.deepcopy(theirs)
    report = ak.accelerate(ours)
    assert all(p.device == device for p in ours.parameters())
    assert {swap.name for swap in report.swapped} == {"gru", "lstm", "encoder"}, report
    x = torch.randn(32, 10, 8, device=device)
    results = []
    for net in (ours, theirs):
        out = net(x)
        out.square().mean().backward()
        results.append({"out": out.detach(), **{name: p.grad for name, p in net.named_parameters()}})
    for (name, expected), found in zip(results[1].items(), results[0].values(), strict=True):
        assert_close(name, found, expected, tolerance=Tolerance(1e-3, 1e-4, 1e-7))
    ak.restore(ours)
    assert {type(m) for m in ours.modules()} == {type(m) for m in theirs.modules()}, report
