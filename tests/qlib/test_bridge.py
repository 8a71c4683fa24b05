"""Qlib's own workflow with Qlib's classes and with ours: data in Qlib's format, qlib.init, handler, task_train with recorder,
SignalRecord and SigAnaRecord, with the same seed."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # Qlib keeps its records in files, which MLflow 3 wants to be told

qlib = pytest.importorskip("qlib")

from qlib.data.dataset.weight import Reweighter  # noqa: E402
from qlib.model.trainer import task_train  # noqa: E402
from qlib.utils import init_instance_by_config  # noqa: E402
from qlib.workflow import R  # noqa: E402

import alphakernels.qlib as bridge  # noqa: E402
from alphakernels.training import CheckpointError  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
import provider  # noqa: E402

PYTORCH = "qlib.contrib.model.pytorch_"
STEP_LEN = 5


@dataclass(frozen=True)
class Case:
    """A model of Qlib.

    Attributes:
        original: its import path below qlib.contrib.model.pytorch_.
        kwargs: for both. theirs: for the original alone.
        windows: trained on TSDatasetH.
        exact: compared in float64, because the model amplifies rounding.
    """

    original: str
    kwargs: dict = field(default_factory=dict)
    theirs: dict = field(default_factory=dict)
    windows: bool = False
    exact: bool = False

    @property
    def module(self) -> str:
        return PYTORCH + self.original.rpartition(".")[0]

    @property
    def name(self) -> str:
        return self.original.rpartition(".")[2]

    def __str__(self) -> str:
        return self.original


RNN = {"hidden_size": 8, "num_layers": 2, "n_epochs": 3, "lr": 5e-3, "batch_size": 300, "seed": 3, "GPU": -1}
ROWS, WINDOWS = {"d_feat": len(provider.FIELDS)}, {"d_feat": len(provider.FIELDS) * provider.LAGS}
NO_WORKERS = {"n_jobs": 0}
TABNET = {
    "d_feat": 40, "out_dim": 8, "batch_size": 512, "vbs": 128, "n_epochs": 3, "pretrain": False, "lr": 1e-3, "seed": 1, "GPU": -1,
}  # fmt: skip
BASE = ROWS | {"hidden_size": 8, "num_layers": 2}
SFM = {
    "d_feat": len(provider.FIELDS), "hidden_size": 8, "freq_dim": 3, "n_epochs": 3, "lr": 5e-3, "batch_size": 300, "seed": 4, "GPU": -1,
    "optimizer": "adam",
}  # fmt: skip
ENCODER = {"d_model": 8, "nhead": 2, "num_layers": 2, "n_epochs": 3, "lr": 5e-3, "batch_size": 300, "seed": 3, "GPU": -1}
# Files of the world: see `World`.
GRAPH = {"hidden_size": 8, "num_layers": 2, "n_epochs": 3, "lr": 5e-3, "seed": 3, "GPU": -1}
CONCEPTS = {"stock2concept": "<world>/concepts.npy", "stock_index": "<world>/stocks.npy"}
GENERAL = {"n_epochs": 3, "lr": 5e-3, "batch_size": 300, "seed": 5, "GPU": -1}

CASES = [
    Case("tabnet.TabnetModel", TABNET, exact=True),
    Case("gru.GRU", RNN | ROWS),
    Case("lstm.LSTM", RNN | ROWS),
    Case("alstm.ALSTM", RNN | ROWS | {"rnn_type": "GRU"}),
    Case("sfm.SFM", SFM),
    Case("gru_ts.GRU", RNN | WINDOWS, NO_WORKERS, windows=True),
    Case("lstm_ts.LSTM", RNN | WINDOWS, NO_WORKERS, windows=True),
    Case("alstm_ts.ALSTM", RNN | WINDOWS, NO_WORKERS, windows=True),
    Case("localformer.LocalformerModel", ENCODER | ROWS),
    Case("transformer.TransformerModel", ENCODER | ROWS),
    Case("localformer_ts.LocalformerModel", ENCODER | WINDOWS, NO_WORKERS, windows=True),
    Case("transformer_ts.TransformerModel", ENCODER | WINDOWS, NO_WORKERS, windows=True),
    Case("gats.GATs", GRAPH | ROWS | {"model_path": "<world>/gru.pkl"}),
    Case("gats_ts.GATs", GRAPH | WINDOWS | {"model_path": "<world>/windows.pkl"}, NO_WORKERS, windows=True),
    Case(
        "hist.HIST",
        GRAPH | ROWS | CONCEPTS | {"base_model": "LSTM", "model_path": "<world>/lstm.pkl", "metric": "ic"},
        exact=True,  # its IC is close to zero
    ),
    Case(
        "general_nn.GeneralPTNN",
        GENERAL | {"pt_model_uri": f"{PYTORCH}nn.Net", "pt_model_kwargs": {"input_dim": 40, "layers": (16,)}},
        NO_WORKERS,
        exact=True,  # Adam moves the biases in front of a batch norm along rounding noise, in Qlib as here
    ),
    Case(
        "general_nn.GeneralPTNN",
        GENERAL
        | {
            "pt_model_uri": f"{PYTORCH}gru_ts.GRUModel",
            "pt_model_kwargs": {"d_feat": 40, "hidden_size": 8, "num_layers": 1, "dropout": 0.0},
        },
        NO_WORKERS,
        windows=True,
    ),
    Case(
        "nn.DNNModelPytorch",
        {
            "max_steps": 50, "batch_size": 256, "eval_steps": 10, "lr": 0.01, "seed": 7, "GPU": -1, "weight_decay": 1e-4,
            "scheduler": None, "pt_model_kwargs": {"input_dim": 40, "layers": (16, 8)},
        },
    ),
]  # fmt: skip


@dataclass
class World:
    folder: Path
    calendar: list[str]
    segments: dict
    handler: str  # a pickled handler, as tasks name it

    def kwargs(self, case: Case) -> dict:
        """Of a case, with the places of this world's files."""
        return {k: v.replace("<world>", str(self.folder)) if isinstance(v, str) else v for k, v in case.kwargs.items()}

    def task(self, case: Case, module: str, name: str | None = None) -> dict:
        theirs = case.theirs if module.startswith("qlib.") else {}
        step_len = STEP_LEN if case.windows else None
        return provider.task(module, name or case.name, self.kwargs(case) | theirs, self.handler, self.segments, step_len)

    def dataset(self, windows: bool = False, segments: dict | None = None):
        return init_instance_by_config(
            provider.task("", "", {}, self.handler, segments or self.segments, STEP_LEN if windows else None)["dataset"]
        )


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("qlib")
    calendar = provider.write(folder / "data")
    manager = {
        "class": "MLflowExpManager",
        "module_path": "qlib.workflow.expm",
        "kwargs": {"uri": f"file://{folder}/mlruns", "default_exp_name": "tests"},
    }
    qlib.init(provider_uri=str(folder / "data"), region="us", exp_manager=manager, kernels=1, logging_level=40)
    segments = provider.segments_of(calendar)
    handler = init_instance_by_config(provider.handler_config(calendar, segments))
    handler.to_pickle(folder / "handler.pkl", dump_all=True)
    np.save(folder / "concepts.npy", (np.random.default_rng(2).random((734, 6)) < 0.4).astype(np.float32))
    np.save(folder / "stocks.npy", {f"S{i:03d}": 3 * i for i in range(provider.INSTRUMENTS)})
    for file, kind, sizes in (("gru", "gru", BASE), ("lstm", "lstm", BASE), ("windows", "gru", BASE | WINDOWS)):
        torch.manual_seed(9)
        network = getattr(importlib.import_module(PYTORCH + kind), f"{kind.upper()}Model")
        torch.save(network(**sizes).state_dict(), folder / f"{file}.pkl")
    return World(folder, calendar, segments, f"file://{folder}/handler.pkl")


class DaysOfWindows:
    """In the place of the sampler of Qlib's GATs of windows, which cuts days out of samples that are listed by instrument: the same
    days, shuffled in training as GATs of rows shuffles them."""

    def __init__(self, source):
        day = source.get_index().get_level_values("datetime")
        self.days = [np.flatnonzero(day == one) for one in sorted(set(day))]
        self.shuffles = len(self.days) > 30  # the training set
        self.passes = 0

    def __iter__(self):
        order = list(range(len(self.days)))
        if self.shuffles and self.passes % 2 == 0:  # every other pass is an evaluation
            np.random.shuffle(order)
        self.passes += 1
        return iter([self.days[i] for i in order])

    def __len__(self):
        return len(self.days)


@pytest.fixture(autouse=True)
def originals_that_run(monkeypatch):
    """GATs and HIST make their base in the default sizes, HIST asks for the number of its GPU, and GATs of windows mixes days."""
    for file, kind in (("gats", "GRU"), ("hist", "LSTM")):
        module = importlib.import_module(PYTORCH + file)
        monkeypatch.setattr(module, f"{kind}Model", functools.partial(getattr(module, f"{kind}Model"), **BASE))
    monkeypatch.setattr(torch, "get_device", lambda x: "cpu", raising=False)
    module = importlib.import_module(f"{PYTORCH}gats_ts")
    monkeypatch.setattr(module, "DailyBatchSampler", DaysOfWindows)
    predict = module.GATs.predict

    def predicted_by_day(self, dataset):
        scores = predict(self, dataset)  # the values by day, the index by instrument
        return pd.Series(scores.to_numpy(), index=scores.index[np.concatenate(DaysOfWindows(Indexed(scores.index)).days)]).loc[scores.index]

    monkeypatch.setattr(module.GATs, "predict", predicted_by_day)


@dataclass
class Indexed:
    index: pd.MultiIndex

    def get_index(self):
        return self.index


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory, monkeypatch):
    """Qlib writes a lock into the working directory."""
    monkeypatch.chdir(tmp_path_factory.getbasetemp())


def run(task: dict):
    """(recorder, the fitted model of its pickle, scores by epoch, predictions)."""
    torch.manual_seed(task["model"]["kwargs"]["seed"])  # GeneralPTNN of Qlib makes its network before it seeds
    recorder = task_train(task, "tests")
    model = recorder.load_object("params.pkl")
    if isinstance(model, bridge._model.QlibModel):
        scores = model.estimator.evals_result_
    else:
        scores = inspect.signature(type(model).fit).parameters["evals_result"].default  # which Qlib's fits write to
    return recorder, model, {name: np.array(values) for name, values in scores.items()}, recorder.load_object("pred.pkl")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case}-{'windows' if case.windows else 'rows'}")
def test_the_same_run_with_either_class(world, in_float64, case):
    with in_float64(case.exact):
        _, theirs, curves, prediction = run(world.task(case, case.module))
        recorder, ours, our_curves, our_prediction = run(world.task(case, "alphakernels.qlib"))
    assert type(ours) is getattr(bridge, case.name)
    assert type(theirs).__module__ == case.module
    assert our_curves.keys() == curves.keys()
    for name, curve in curves.items():
        assert len(curve) >= 3
        np.testing.assert_allclose(our_curves[name], curve, rtol=1e-4)
    assert our_prediction.index.equals(prediction.index)
    scale = max(float(prediction["score"].std()), 1e-2)
    np.testing.assert_allclose(our_prediction["score"], prediction["score"], rtol=0, atol=1e-4 * max(1, 1 / scale) if case.exact else 1e-4)
    metrics = recorder.list_metrics()
    expected = R.list_recorders(experiment_name="tests")
    assert {"IC", "ICIR", "Rank IC", "Rank ICIR"} <= metrics.keys()
    their_metrics = next(r.list_metrics() for r in expected.values() if r.id != recorder.id and _is_of(r, case.module, case.name))
    for name in ("IC", "Rank IC"):
        assert metrics[name] == pytest.approx(their_metrics[name], abs=1e-3)


def _is_of(recorder, module, name):
    if recorder.status != "FINISHED":
        return False
    model = recorder.load_object("task")["model"]
    return (model["module_path"], model["class"]) == (module, name)


ALSTM = next(case for case in CASES if case.original == "alstm.ALSTM")
GRU = next(case for case in CASES if case.original == "gru.GRU")
GRU_TS = next(case for case in CASES if case.original == "gru_ts.GRU")
HIST = next(case for case in CASES if case.original == "hist.HIST")
DNN = CASES[-1]
GRU_TS_CLASS = importlib.import_module(GRU_TS.module).GRU


def test_patch_needs_no_other_config(world):
    module = importlib.import_module(f"{PYTORCH}gru")
    package, original = importlib.import_module("qlib.contrib.model"), module.GRU
    with bridge.patched():
        assert bridge.patch() == bridge.patch() == list(bridge.TABLE)
        assert module.GRU is package.GRU is bridge.GRU
        model = init_instance_by_config(world.task(GRU, GRU.module)["model"])
        assert type(model) is bridge.GRU
        for path, ours in bridge.TABLE.items():
            name, _, cls = path.rpartition(".")
            assert getattr(importlib.import_module(name), cls) is ours
    assert module.GRU is package.GRU is original
    bridge.unpatch()
    assert module.GRU is original


def test_scores_go_to_the_active_recorder_only(world):
    dataset = world.dataset()
    before = len(R.list_recorders(experiment_name="tests"))
    model = bridge.GRU(**GRU.kwargs)
    model.fit(dataset)
    assert len(R.list_recorders(experiment_name="tests")) == before
    with R.start(experiment_name="scores"):
        model.fit(dataset)
        recorder = R.get_recorder()
    assert recorder.list_metrics()["train"] == pytest.approx(model.estimator.evals_result_["train"][-1])
    with R.start(experiment_name="steps"):
        bridge.DNNModelPytorch(**DNN.kwargs | {"eval_train_metric": True}).fit(dataset)
        recorder = R.get_recorder()
    assert {"train_loss", "val_loss", "val_metric", "train_metric", "lr", "best_step"} <= recorder.list_metrics().keys()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case}-{'windows' if case.windows else 'rows'}")
def test_weights_load_both_ways_and_pickles_keep_all(world, tmp_path, case):
    dataset = world.dataset(case.windows)
    short = world.kwargs(case) | ({"max_steps": 10} if "max_steps" in case.kwargs else {"n_epochs": 1})
    theirs = getattr(importlib.import_module(case.module), case.name)(**short | case.theirs)
    ours = getattr(bridge, case.name)(**short)
    ours.fit(dataset, save_path=tmp_path / "ours.pt")
    theirs.fit(dataset, save_path=str(tmp_path / "theirs.pt"))
    names = (type(ours).network_name, type(ours).windows_network_name)
    attribute = next(name for name in names if name and hasattr(theirs, name))
    getattr(theirs, attribute).load_state_dict(torch.load(tmp_path / "ours.pt"))
    scores = ours.predict(dataset)
    np.testing.assert_allclose(theirs.predict(dataset), scores, rtol=0, atol=1e-5)
    assert getattr(ours, attribute) is ours.estimator.module_

    restored = pickle.loads(pickle.dumps(ours))
    pd.testing.assert_series_equal(restored.predict(dataset), scores, check_exact=True)
    assert restored.fitted and restored.given == ours.given
    assert not pickle.loads(pickle.dumps(type(ours)(**short))).fitted

    fresh = type(ours)(**short).load_qlib_checkpoint(tmp_path / "theirs.pt", dataset)
    getattr(theirs, attribute).load_state_dict(torch.load(tmp_path / "theirs.pt"))
    np.testing.assert_allclose(fresh.predict(dataset), theirs.predict(dataset), rtol=0, atol=1e-5)


def test_windows_chosen_by_a_column(world, monkeypatch):
    """flt_col: which rows are samples; what they look back to stays."""
    kwargs = GRU_TS.kwargs | {"batch_size": 100}

    def dataset():
        config = provider.task("", "", {}, world.handler, world.segments, STEP_LEN)["dataset"]
        config["kwargs"]["flt_col"] = "label"
        made = init_instance_by_config(config)
        for name in ("_learn", "_infer"):
            values = getattr(made.handler, name).copy()
            values.loc[np.random.default_rng(1).random(len(values)) < 0.3, ("label", "LABEL0")] = 0.0
            monkeypatch.setattr(made.handler, name, values)
        return made

    theirs, ours = GRU_TS_CLASS(**kwargs | GRU_TS.theirs), bridge.GRU(**kwargs)
    curves, our_curves = {}, {}
    theirs.fit(dataset(), curves)
    ours.fit(dataset(), our_curves)
    for name in curves:
        np.testing.assert_allclose(our_curves[name], curves[name], rtol=1e-4)
    expected, found = theirs.predict(dataset()), ours.predict(dataset())
    assert 0 < len(found) < 0.8 * len(ours.predict(world.dataset(windows=True)))
    assert found.index.equals(expected.index)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    nothing = dataset()
    learn = nothing.handler._learn.copy()
    learn[("label", "LABEL0")] = 0.0
    monkeypatch.setattr(nothing.handler, "_learn", learn)
    with pytest.raises(ValueError, match=r"segment 'train' .* must have a row that flt_col='label' lets through, got none of"):
        ours.fit(nothing)
    nothing.flt_col = "feature"
    with pytest.raises(ValueError, match="flt_col='feature' must be one column, got 40"):
        ours.fit(nothing)


def test_stocks_without_concepts_take_qlibs_row(world, tmp_path):
    kwargs, dataset = world.kwargs(HIST) | {"n_epochs": 1}, world.dataset()
    theirs = importlib.import_module(HIST.module).HIST(**kwargs)
    theirs.fit(dataset, save_path=str(tmp_path / "theirs.pt"))
    known = np.load(kwargs["stock_index"], allow_pickle=True).item()
    np.save(tmp_path / "some.npy", {name: row for name, row in known.items() if name != "S007"})
    theirs.stock_index = str(tmp_path / "some.npy")
    ours = bridge.HIST(**kwargs | {"stock_index": theirs.stock_index}).load_qlib_checkpoint(tmp_path / "theirs.pt", dataset)
    assert ours.estimator.default_row == 733
    np.testing.assert_allclose(ours.predict(dataset), theirs.predict(dataset), rtol=0, atol=1e-5)


class Half(Reweighter):
    """Weights that differ by row, in the order of what it is given."""

    def __init__(self):
        pass

    def reweight(self, data):
        index = data.get_index() if hasattr(data, "get_index") else data.index
        return pd.Series(0.5 + (index.get_level_values("instrument").str[-1].astype(int) % 3), index=index).to_numpy(dtype=np.float32)


def test_reweighter(world):
    dataset = world.dataset(windows=True)
    curves = {}
    for module in (GRU_TS.module, "alphakernels.qlib"):
        kwargs = GRU_TS.kwargs | (GRU_TS.theirs if module != "alphakernels.qlib" else {})
        curves[module] = {}
        importlib.import_module(module).GRU(**kwargs).fit(dataset, curves[module], reweighter=Half())
    theirs, ours = curves.values()
    np.testing.assert_allclose(ours["valid"], theirs["valid"], rtol=1e-4)
    plain = {}
    bridge.GRU(**GRU_TS.kwargs).fit(dataset, plain)
    assert np.abs(np.array(plain["valid"]) / ours["valid"] - 1).max() > 1e-4
    with pytest.raises(ValueError, match="reweighter must be a qlib.data.dataset.weight.Reweighter, got function"):
        bridge.GRU(**GRU_TS.kwargs).fit(dataset, reweighter=lambda data: data)


def test_rows_with_missing_features_have_no_score(world, monkeypatch):
    dataset = world.dataset()
    model = bridge.GRU(**GRU.kwargs | {"n_epochs": 1})
    model.fit(dataset)
    whole = model.predict(dataset)
    infer = dataset.handler._infer.copy()
    keys = whole.index[[0, 7]]
    infer.loc[keys, infer.columns[3]] = np.nan
    monkeypatch.setattr(dataset.handler, "_infer", infer)
    scores = model.predict(dataset)
    assert scores.loc[keys].isna().all()
    pd.testing.assert_series_equal(scores.drop(keys), whole.drop(keys))


def test_other_segments_and_calls(world):
    dataset = world.dataset()
    model = bridge.GRU(**GRU.kwargs | {"n_epochs": 1})
    with pytest.raises(ValueError, match="model is not fitted yet"):
        model.predict(dataset)
    model.fit(dataset)
    assert len(model.predict(dataset, "valid")) == len(dataset.prepare("valid", col_set="feature", data_key="infer"))
    days = slice(world.calendar[60], world.calendar[61])
    assert len(model.predict(dataset, days)) == 2 * provider.INSTRUMENTS
    pd.testing.assert_series_equal(model(dataset), model.predict(dataset))


def test_an_unknown_class_or_argument(world):
    task = world.task(GRU, "alphakernels.qlib", "GRUU")
    with pytest.raises(AttributeError, match="alphakernels.qlib has no class 'GRUU'; did you mean 'GRU'?"):
        init_instance_by_config(task["model"])
    with pytest.raises(TypeError, match="GRU: unknown argument 'hidden_sise'; did you mean 'hidden_size'?"):
        bridge.GRU(hidden_sise=3)
    for name in sorted({cls.__name__ for cls in bridge.TABLE.values()}):
        with pytest.raises(TypeError, match=f"{name}: unknown argument 'sed'; did you mean 'seed'?"):
            getattr(bridge, name)(sed=3)
    with pytest.raises(TypeError, match="at most"):
        bridge.GRU(*range(40))
    assert bridge.GRU(3, hidden_size=4, n_jobs=3).estimator.d_feat == 3
    assert bridge.TabnetModel().estimator.missing == "fill"
    assert "hidden_size=64" in str(inspect.signature(bridge.GRU))
    with pytest.raises(AttributeError, match="'GRU' object has no attribute 'gru_modell'"):
        bridge.GRU().gru_modell  # noqa: B018
    with pytest.raises(AttributeError, match="once the model is fitted"):
        bridge.GRU().gru_model  # noqa: B018


@pytest.mark.parametrize("windows", [False, True])
def test_bad_data_is_named(world, monkeypatch, windows):
    kwargs = (GRU_TS if windows else GRU).kwargs
    for left_out in ("train", "test"):
        segments = {name: days for name, days in world.segments.items() if name != left_out}
        dataset, model = world.dataset(windows, segments), bridge.GRU(**kwargs | {"n_epochs": 1})
        with pytest.raises(ValueError, match=f"no segment '{left_out}' in the dataset; it has"):
            model.fit(dataset)
            model.predict(dataset)
    dataset = world.dataset(windows, world.segments | {"valid": ("2030-01-01", "2030-02-01")})
    with pytest.raises(ValueError, match=r"segment 'valid' \(2030-01-01 to 2030-02-01\) must have at least one row"):
        bridge.GRU(**kwargs).fit(dataset)
    dataset = world.dataset(windows)
    learn = dataset.handler._learn.copy()
    learn[("label", "LABEL0")] = np.nan
    monkeypatch.setattr(dataset.handler, "_learn", learn)
    with pytest.raises(ValueError, match="label must be observed somewhere in segment 'train'|must have a row without NaN"):
        bridge.LSTM(**kwargs).fit(dataset)
    learn = dataset.handler._learn.copy()
    learn[("label", "LABEL0")] = 1.0
    learn[learn.columns[3]] = np.nan
    monkeypatch.setattr(dataset.handler, "_learn", learn)
    with pytest.raises(ValueError, match="NaN or infinity in 1 of 40 columns of segment 'train'.*OPEN4"):
        bridge.LSTM(**kwargs).fit(dataset)
    monkeypatch.setattr(dataset.handler, "_learn", learn.drop(columns=[("label", "LABEL0")]))
    with pytest.raises(ValueError, match="must have features and a label"):
        bridge.LSTM(**kwargs).fit(dataset)


def test_checkpoints_of_others(world, tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="another model's"):
        bridge.GRU(**GRU.kwargs).load_qlib_checkpoint(tmp_path / "other.pt", world.dataset())
    with pytest.raises(ValueError, match="load_qlib_checkpoint needs a dataset"):
        bridge.GRU(**GRU.kwargs).load_qlib_checkpoint(tmp_path / "other.pt")


def test_qrun(world, tmp_path):
    import yaml

    task = provider.task(GRU.module, "GRU", GRU.kwargs, str(world.handler), {k: list(v) for k, v in world.segments.items()})
    config = {"qlib_init": {"provider_uri": str(world.folder / "data"), "region": "us", "kernels": 1}, "task": task}
    (tmp_path / "workflow.yaml").write_text(yaml.safe_dump(config))
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_ALLOW_FILE_STORE"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "alphakernels", "qrun", "workflow.yaml", "--experiment-name", "mine"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "qlib.contrib.model.pytorch_gru.GRU" in done.stdout
    (model,) = (tmp_path / "mlruns").glob("*/*/artifacts/params.pkl")
    with model.open("rb") as file:
        assert type(pickle.load(file)) is bridge.GRU


def test_qrun_without_a_workflow():
    from alphakernels.cli.qrun import run as qrun

    with pytest.raises(FileNotFoundError, match="none.yaml: no such file"):
        qrun(Path("none.yaml"), "tests", "mlruns", None)
