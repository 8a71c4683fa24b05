"""Resuming: killed in the middle and started again, a run ends with the very bits of one that was left alone."""

from __future__ import annotations

import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from alphakernels.training import CheckpointError, Trainer, load_tensors

RUN = """
import os, signal, sys
from types import SimpleNamespace
import numpy as np
import torch
from torch import nn
from alphakernels.training import Callback, Trainer, mse, save_tensors

torch.set_num_threads(1)
checkpoint, result, kill_epoch, optimizer, every, lr = sys.argv[1:7]

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.again = nn.ModuleList([self.first, nn.BatchNorm1d(6), nn.Dropout(0.3)])
        self.head = nn.Linear(6, 1)

    def forward(self, x):
        x = torch.relu(self.first(x))
        for layer in self.again:
            x = layer(x)
        return self.head(x).squeeze(-1)

class Rows:
    def __init__(self, rows, shuffle=None):
        generator = np.random.RandomState(rows)
        self.x = torch.from_numpy(generator.randn(rows, 6).astype(np.float32))
        self.y = self.x[:, 0] * self.x[:, 1] + 0.1
        self.shuffle = shuffle
    def __len__(self):
        return -(-len(self.x) // 32)
    def __iter__(self):
        order = np.arange(len(self.x))
        if self.shuffle is not None:
            self.shuffle.shuffle(order)
        for start in range(0, len(order), 32):
            rows = order[start:start + 32]
            yield SimpleNamespace(x=self.x[rows], y=self.y[rows], rows=rows)

class Kill(Callback):
    def on_batch_end(self, state):
        if state.epoch == int(kill_epoch) and state.batch == 2:
            os.kill(os.getpid(), signal.SIGKILL)

state = np.random.RandomState(5)
state.randn(3)  # leaves a cached gaussian in the state
torch.manual_seed(5)
module = Tied()
scheduler = lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 8)
outcome = Trainer(
    epochs=8, lr=float(lr), optimizer=optimizer, weight_decay=0.01, scheduler=scheduler, patience=6,
    checkpoint=checkpoint, checkpoint_every=int(every), callbacks=[Kill()], progress=False,
).fit(module, lambda m, b: mse(m(b.x), b.y), Rows(150, state), {"valid": Rows(40)}, random_state=state, resume=True)
draws = torch.cat([torch.rand(3, dtype=torch.float64), torch.from_numpy(state.randn(3))])
save_tensors(result, {**module.state_dict(), "draws": draws}, {"history": outcome.history, "best": outcome.best_epoch})
"""


def run(folder, name, *, kill_epoch=-1, optimizer="adam", every=1, lr=0.03):
    checkpoint, result = folder / f"{name}.checkpoint", folder / f"{name}.result"
    arguments = [checkpoint, result, kill_epoch, optimizer, every, lr]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done, result


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize(("optimizer", "every", "kills"), [("adam", 1, [3, 6]), ("sgd", 3, [4])])
def test_killed_and_resumed_is_bitwise_the_uninterrupted_run(tmp_path, optimizer, every, kills):
    done, whole = run(tmp_path, "whole", optimizer=optimizer, every=every)
    assert done.returncode == 0, done.stderr
    for epoch in kills:
        done, _ = run(tmp_path, "killed", kill_epoch=epoch, optimizer=optimizer, every=every)
        assert done.returncode == -signal.SIGKILL, done.stderr
    done, resumed = run(tmp_path, "killed", optimizer=optimizer, every=every)
    assert done.returncode == 0, done.stderr
    expected, expected_metadata = load_tensors(whole)
    got, got_metadata = load_tensors(resumed)
    assert got_metadata == expected_metadata
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


def fit(checkpoint, *, module=None, resume=True, fingerprint=None, draws=None, **options):
    torch.manual_seed(0)
    module = nn.Linear(3, 1) if module is None else module
    x = torch.randn(20, 3)

    class Rows:
        def __len__(self):
            return 1

        def __iter__(self):
            from types import SimpleNamespace

            return iter([SimpleNamespace(x=x, y=x.sum(1), rows=np.arange(20))])

    options = {"epochs": 3, "progress": False, "checkpoint": checkpoint, **options}
    calls = []

    def loss(m, b):
        calls.append(1)
        return (m(b.x).squeeze(-1) - b.y).square().mean()

    result = Trainer(**options).fit(module, loss, Rows(), {"valid": Rows()}, resume=resume, fingerprint=fingerprint)
    return module, result, len(calls)


def test_a_finished_training_is_not_trained_again(tmp_path):
    module, result, calls = fit(tmp_path / "c")
    again, result_again, calls_again = fit(tmp_path / "c")
    assert (calls, calls_again) == (6, 0)
    assert torch.equal(again.weight, module.weight)
    assert result_again == result


def test_a_training_that_stopped_early_stays_stopped(tmp_path):
    _, result, _ = fit(tmp_path / "c", epochs=9, lr=0.0, patience=2)
    _, again, calls = fit(tmp_path / "c", epochs=9, lr=0.0, patience=2)
    assert result.stopped_early
    assert again == result
    assert calls == 0


def test_without_resume_it_starts_anew(tmp_path):
    fit(tmp_path / "c")
    assert fit(tmp_path / "c", resume=False)[2] == 6


def test_other_arguments_are_named(tmp_path):
    fit(tmp_path / "c", fingerprint={"width": 8, "seed": 1})
    with pytest.raises(
        CheckpointError,
        match=r"lr: the checkpoint has 0\.001, this run 0\.01; width: the checkpoint has 8, this run 9",
    ):
        fit(tmp_path / "c", lr=0.01, fingerprint={"width": 9, "seed": 1})
    with pytest.raises(CheckpointError, match="seed: the checkpoint has 1, this run None"):
        fit(tmp_path / "c", fingerprint={"width": 8})


def test_another_model_or_kind_of_file(tmp_path):
    fit(tmp_path / "c")
    other = nn.Sequential(nn.Linear(3, 1))
    before = other[0].weight.clone()
    with pytest.raises(CheckpointError, match=r"another model's \(saved from Linear\): 2 missing: 0\.weight, 0\.bias"):
        fit(tmp_path / "c", module=other)
    assert torch.equal(other[0].weight, before)
    from alphakernels.training import save_tensors

    save_tensors(tmp_path / "m", {}, {"kind": "model"})
    with pytest.raises(CheckpointError, match="got one of kind 'model'"):
        fit(tmp_path / "m")
    (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:300])
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        fit(tmp_path / "c")
