"""Checkpoints: what goes in comes out, bad files are told, and an interrupted save loses nothing."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from alphakernels.training import CheckpointError, checkpoint, load_module_state, load_tensors, save_tensors


class Tied(nn.Module):
    def __init__(self, width=5):
        super().__init__()
        self.a = nn.Linear(width, width)
        self.b = nn.ModuleList([self.a, nn.BatchNorm1d(width)])


def test_round_trip_keeps_bits_dtypes_layouts_and_metadata(tmp_path):
    torch.manual_seed(1)
    base = torch.randn(9, 7)
    tensors = {
        "float": base,
        "transposed": torch.randn(4, 3).T,
        "slice": base[2:5],
        "double": torch.randn(3, dtype=torch.float64),
        "half": torch.randn(3).bfloat16(),
        "count": torch.tensor(41),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "empty": torch.empty(0, 3),
        "special": torch.tensor([float("nan"), float("inf"), -0.0]),
    }
    metadata = {"lr": 0.1 + 0.2, "best": float("inf"), "names": ["é", "b"], "none": None}
    save_tensors(tmp_path / "new" / "x.safetensors", tensors, metadata)
    got, got_metadata = load_tensors(tmp_path / "new" / "x.safetensors")
    assert got_metadata == metadata
    assert set(got) == set(tensors)
    for name, tensor in tensors.items():
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=0, equal_nan=True)
    assert os.listdir(tmp_path / "new") == ["x.safetensors"]


def test_tied_weights_are_stored_once_and_come_back_under_every_name(tmp_path):
    module = Tied(40)
    save_tensors(tmp_path / "x", module.state_dict(), {})
    assert os.path.getsize(tmp_path / "x") < 2 * 40 * 40 * 4
    other = Tied(40)
    load_module_state(other, load_tensors(tmp_path / "x")[0], source="x")
    assert other.a.weight is other.b[0].weight
    for name, tensor in module.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_snapshot_is_a_copy_and_keeps_ties():
    module = Tied()
    state = checkpoint.snapshot(module)
    before = state["a.weight"].clone()
    with torch.no_grad():
        module.a.weight.add_(1)
    assert torch.equal(state["a.weight"], before)
    assert state["a.weight"].data_ptr() == state["b.0.weight"].data_ptr()


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_truncated_file(tmp_path, keep):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.randn(30, 30)}, {"k": 1})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"x\.safetensors: expected a whole safetensors file, got a truncated"):
        load_tensors(path)


def test_a_pickle_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    (tmp_path / "x").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match="corrupt"):
        load_tensors(tmp_path / "x")
    assert not (tmp_path / "sprung").exists()


def test_missing_file_directory_foreign_file_and_newer_format(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a file at"):
        load_tensors(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="expected a file at"):
        load_tensors(tmp_path)
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="expected a file written by alphakernels"):
        load_tensors(tmp_path / "foreign")
    header = {"alphakernels_format": "99", "alphakernels_metadata": "{}", "alphakernels_aliases": "{}"}
    save_file({"a": torch.zeros(2)}, tmp_path / "newer", metadata=header)
    with pytest.raises(CheckpointError, match="expected format version 1, got 99"):
        load_tensors(tmp_path / "newer")
    save_file(
        {"a": torch.zeros(2)},
        tmp_path / "bad",
        metadata={**header, "alphakernels_format": "1", "alphakernels_metadata": "{"},
    )
    with pytest.raises(CheckpointError, match="corrupt header"):
        load_tensors(tmp_path / "bad")


def test_weights_of_another_model_are_named_and_change_nothing():
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    other = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1)).state_dict()
    with pytest.raises(CheckpointError) as error:
        load_module_state(module, other, source="file.st", saved_class="Other")
    text = str(error.value)
    assert "file.st: expected the weights of this Sequential, got another model's (saved from Other)" in text
    assert "2 missing: 1.weight, 1.bias" in text
    assert "2 unexpected: 2.weight, 2.bias" in text
    assert "0.weight: expected (4, 3), got (5, 3)" in text
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("broken", ["save_file", "_flush", "replace"])
def test_interrupted_save_leaves_the_previous_file_whole(tmp_path, monkeypatch, broken):
    path = tmp_path / "x"
    save_tensors(path, {"a": torch.ones(3)}, {"n": 1})
    before = path.read_bytes()

    def fail(target, *args, **kwargs):
        if broken == "save_file":
            args[0].write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(os if broken == "replace" else checkpoint, broken, fail)
    with pytest.raises(OSError, match="no space left"):
        save_tensors(path, {"a": torch.zeros(3)}, {"n": 2})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a file size limit")
def test_a_disk_that_refuses_to_write_leaves_the_previous_file_whole(tmp_path):
    path = tmp_path / "x"
    save_tensors(path, {"a": torch.ones(3)}, {"n": 1})
    before = path.read_bytes()
    script = f"""
import resource, signal, torch
from alphakernels.training import save_tensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
save_tensors({str(path)!r}, {{"a": torch.zeros(1_000_000)}}, {{"n": 2}})
"""
    run = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert run.returncode != 0
    assert "too large" in run.stderr.lower() or "os error" in run.stderr.lower() or run.returncode < 0, run.stderr
    assert path.read_bytes() == before
    assert load_tensors(path)[1] == {"n": 1}


def test_metadata_is_readable_json_in_the_header(tmp_path):
    save_tensors(tmp_path / "x", {"a": torch.zeros(1)}, {"class": "Y"})
    raw = (tmp_path / "x").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert json.loads(header["__metadata__"]["alphakernels_metadata"]) == {"class": "Y"}
