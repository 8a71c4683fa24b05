"""Saving, loading and resuming an estimator."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from alphakernels.data import PanelDataset
from alphakernels.estimators import Estimator, TabNetModel
from alphakernels.training import CheckpointError, checkpoint, load_tensors, save_tensors

SMALL = {
    "d_feat": None, "out_dim": 4, "n_steps": 2, "batch_size": 50, "vbs": 25, "n_epochs": 2, "pretrain_n_epochs": 2,
    "GPU": -1, "progress": False,
}  # fmt: skip


def dataset(seed=0):
    rng = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product(
        [pd.bdate_range("2020-01-01", periods=20), list("ABCDEFGHI")], names=["datetime", "instrument"]
    )
    frame = pd.DataFrame(rng.normal(size=(180, 5)).astype(np.float32), index=index, columns=[*"wxyz", "label"])
    segments = {
        "train": ("2020-01-01", "2020-01-14"),
        "valid": ("2020-01-15", "2020-01-20"),
        "test": ("2020-01-21", None),
    }
    segments["test"] = ("2020-01-21", "2020-01-31")
    return PanelDataset(frame, label="label", segments=segments)


@pytest.fixture(scope="module")
def fitted():
    return TabNetModel(**SMALL).fit(dataset())


def test_round_trip(fitted, tmp_path):
    before = torch.get_rng_state()
    fitted.save(tmp_path / "new" / "m.safetensors")
    loaded = TabNetModel.load(tmp_path / "new" / "m.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    pd.testing.assert_series_equal(loaded.predict(dataset()), fitted.predict(dataset()), check_exact=True)
    assert loaded.get_params() == fitted.get_params()
    assert loaded.features_ == list("wxyz")
    assert loaded.evals_result_ == fitted.evals_result_
    assert loaded.fit(dataset()).predict(dataset()).equals(fitted.predict(dataset()))


def test_fit_can_save(tmp_path):
    model = TabNetModel(**SMALL).fit(dataset(), save_path=tmp_path / "m")
    assert TabNetModel.load(tmp_path / "m").predict(dataset()).equals(model.predict(dataset()))


def test_parameters_that_json_does_not_know(tmp_path):
    options = {**SMALL, "GPU": torch.device("cpu"), "lr": np.float64(0.02), "n_epochs": np.int64(1)}
    model = TabNetModel(**options, pretrain_file=tmp_path / "encoder").fit(dataset())
    model.save(tmp_path / "m")
    loaded = TabNetModel.load(tmp_path / "m").get_params()
    assert (loaded["GPU"], loaded["lr"], loaded["n_epochs"]) == ("cpu", 0.02, 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU is what is tested")
def test_a_model_from_a_gpu_loads_on_the_cpu(fitted, tmp_path):
    for gpu in (0, "cuda:1"):
        fitted.save(tmp_path / "m")
        tensors, metadata = load_tensors(tmp_path / "m")
        metadata["parameters"]["GPU"] = gpu
        save_tensors(tmp_path / "m", tensors, metadata)
        assert TabNetModel.load(tmp_path / "m").predict(dataset()).equals(fitted.predict(dataset()))
    with pytest.raises(ValueError, match="GPU must be one of the 0 CUDA devices here, got 'cuda:0'"):
        TabNetModel.load(tmp_path / "m", device="cuda:0")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_to_cpu_round_trip(tmp_path):
    model = TabNetModel(**{**SMALL, "GPU": 0}).fit(dataset(), save_path=tmp_path / "m")
    loaded = TabNetModel.load(tmp_path / "m", device="cpu")
    assert next(loaded.module_.parameters()).device.type == "cpu"
    pd.testing.assert_series_equal(loaded.predict(dataset()), model.predict(dataset()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("gpu", "error", "message"),
    [
        (True, TypeError, "an int, a str or a torch.device"),
        ("gpu7", ValueError, "such as 'cpu' or 'cuda:0', got 'gpu7'"),
    ],
)
def test_bad_devices(gpu, error, message):
    with pytest.raises(error, match=message):
        TabNetModel(**{**SMALL, "GPU": gpu}).fit(dataset())


class OtherModel(TabNetModel):
    pass


def test_another_class_kind_parameter_or_size(fitted, tmp_path):
    fitted.save(tmp_path / "m")
    with pytest.raises(CheckpointError, match="expected a saved OtherModel, got a model of class TabNetModel"):
        OtherModel.load(tmp_path / "m")
    tensors, metadata = load_tensors(tmp_path / "m")
    bigger = {**metadata, "parameters": {**metadata["parameters"], "out_dim": 5}}
    save_tensors(tmp_path / "b", tensors, bigger)
    with pytest.raises(CheckpointError, match=r"model\.fc\.weight: expected \(5, 64\), got \(4, 64\)"):
        TabNetModel.load(tmp_path / "b")
    newer = {**metadata, "parameters": {**metadata["parameters"], "new_thing": 5}}
    save_tensors(tmp_path / "n", tensors, newer)
    with pytest.raises(CheckpointError, match="got also new_thing"):
        TabNetModel.load(tmp_path / "n")
    save_tensors(tmp_path / "k", tensors, {"kind": "training"})
    with pytest.raises(CheckpointError, match="expected a saved TabNetModel, got a training"):
        TabNetModel.load(tmp_path / "k")
    raw = (tmp_path / "m").read_bytes()
    (tmp_path / "m").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        TabNetModel.load(tmp_path / "m")
    with pytest.raises(FileNotFoundError, match="expected a file at"):
        TabNetModel.load(tmp_path / "none")


def test_an_interrupted_save_leaves_the_previous_model(fitted, tmp_path, monkeypatch):
    fitted.save(tmp_path / "m")

    def fail(tensors, path, metadata):
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(KeyboardInterrupt):
        fitted.save(tmp_path / "m")
    assert TabNetModel.load(tmp_path / "m").predict(dataset()).equals(fitted.predict(dataset()))
    assert os.listdir(tmp_path) == ["m"]


def test_an_estimator_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Estimator()


def test_resume_needs_a_folder_and_the_same_fit(tmp_path):
    with pytest.raises(ValueError, match="resume=True needs checkpoint_dir"):
        TabNetModel(**SMALL).fit(dataset(), resume=True)
    first = TabNetModel(**SMALL).fit(dataset(), checkpoint_dir=tmp_path)
    again = TabNetModel(**SMALL).fit(dataset(), checkpoint_dir=tmp_path, resume=True)
    assert again.predict(dataset()).equals(first.predict(dataset()))
    assert again.evals_result_ == first.evals_result_
    with pytest.raises(CheckpointError, match="relax: the checkpoint has 1.3, this run 1.5"):
        TabNetModel(**{**SMALL, "relax": 1.5}).fit(dataset(), checkpoint_dir=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="train data: the checkpoint has '90 rows, crc32"):
        TabNetModel(**SMALL).fit(dataset(seed=1), checkpoint_dir=tmp_path, resume=True)


RUN = """
import os, signal, sys
import numpy as np, pandas as pd, torch
from alphakernels.data import PanelDataset
from alphakernels.estimators import TabNetModel
from alphakernels.training import Callback

torch.set_num_threads(1)
folder, result, variant = sys.argv[1:4]
kills = [tuple(kill.split(":")) for kill in sys.argv[4:]]

class Kill(Callback):
    def on_batch_end(self, state):
        if (state.name, str(state.epoch)) in kills and state.batch == 1:
            os.kill(os.getpid(), signal.SIGKILL)

rng = np.random.default_rng(0)
index = pd.MultiIndex.from_product(
    [pd.bdate_range("2020-01-01", periods=20), list("ABCDEFGHI")], names=["datetime", "instrument"])
frame = pd.DataFrame(rng.normal(size=(180, 5)).astype(np.float32), index=index, columns=[*"wxyz", "label"])
data = PanelDataset(frame, label="label", segments={
    "train": ("2020-01-01", "2020-01-14"), "valid": ("2020-01-15", "2020-01-20"), "test": ("2020-01-21", "2020-01-31")})
model = TabNetModel(d_feat=None, out_dim=4, n_steps=3, batch_size=30, vbs=15, n_epochs=4, pretrain_n_epochs=3, GPU=-1,
                    progress=False, variant=variant)
model.fit(data, checkpoint_dir=folder, resume=True, callbacks=[Kill()], save_path=result)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("variant", ["qlib", "paper"])
def test_killed_in_both_phases_and_resumed_is_bitwise_the_uninterrupted_fit(tmp_path, variant):
    def run(name, *kills):
        arguments = [tmp_path / name, tmp_path / f"{name}.model", variant, *kills]
        return subprocess.run(
            [sys.executable, "-c", RUN, *map(str, arguments)], check=False, capture_output=True, text=True, timeout=180
        )

    done = run("whole")
    assert done.returncode == 0, done.stderr
    for kill in ("pretrain:1", "finetune:2"):
        done = run("killed", kill)
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "killed.model").exists()
    done = run("killed")
    assert done.returncode == 0, done.stderr
    expected, expected_metadata = load_tensors(tmp_path / "whole.model")
    got, got_metadata = load_tensors(tmp_path / "killed.model")
    assert json.dumps(got_metadata) == json.dumps(expected_metadata)
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name
