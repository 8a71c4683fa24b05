"""Captured steps, as far as that shows without a GPU: what is captured and what not, for which reason, and that training goes the same
way. In the place of CUDA's graphs stands one that runs the captured function again; tests/gpu has the real ones."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn

from alphakernels.data import RowBatches
from alphakernels.training import Trainer, capture, loop, mse
from alphakernels.training.capture import Steps, reason_against, reason_against_batch, reason_against_optimizer

CPU = torch.device("cpu")


class Graphs:
    """Runs again what was captured; counts."""

    def __init__(self, device=None, fail=None):
        self.captures = self.replays = self.warmed = 0
        self.fail = fail

    def warm(self, function):
        self.warmed += 1
        function()

    def capture(self, function):
        self.captures += 1
        if self.fail:
            raise RuntimeError(self.fail)

        def replay():
            self.replays += 1
            return function()

        return replay


@dataclass(frozen=True)
class Batch:
    x: torch.Tensor
    y: torch.Tensor | None = None
    rows: object = None
    extras: dict = field(default_factory=dict)
    offsets: torch.Tensor | None = None


@pytest.fixture
def captured(monkeypatch):
    """Trainings on the CPU believe they were on a GPU, and use these graphs."""
    graphs = Graphs()
    monkeypatch.setattr(loop, "reason_against", lambda *args, **options: None)
    monkeypatch.setattr(capture, "CudaGraphs", lambda device: graphs)
    return graphs


def train(batches=None, epochs=4, rows=150, loss=None, **options):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 5, generator=generator)
    y = x @ torch.linspace(-1, 1, 5)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    batches = batches(x, y) if batches else RowBatches(x, y, batch_size=32, shuffle=np.random.RandomState(7))
    loss = loss or (lambda module, batch: mse(module(batch.x).squeeze(-1), batch.y))
    trainer = Trainer(epochs=epochs, lr=0.02, clip_value=3.0, progress=False, **options)
    result = trainer.fit(module, loss, batches, {"valid": RowBatches(x, y, batch_size=64)})
    return result, module.state_dict()


def same(one, other):
    (first, weights), (second, expected) = one, other
    assert first.history == second.history
    for name, tensor in expected.items():
        assert torch.equal(weights[name], tensor), name


def test_captured_steps_train_the_same_way(captured, monkeypatch):
    found = train()
    assert (captured.warmed, captured.captures) == (3 + 4, 1)  # three of the full batches, and the short ones at the epochs' ends
    assert captured.replays == 4 * 4 - 3
    assert found[0].steps == "13 of 20 steps replayed as a CUDA graph"
    monkeypatch.undo()
    expected = train()
    same(found, expected)
    assert expected[0].steps == "steps run one kernel after the other: the parameters are on cpu, and a graph needs one GPU"


def test_another_learning_rate_is_another_graph(captured, monkeypatch):
    options = {"scheduler": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)}
    found = train(**options, rows=320)
    assert captured.captures == 2
    monkeypatch.undo()
    same(found, train(**options, rows=320))


def test_what_the_host_draws_is_not_captured(captured, caplog):
    def noisy(module, batch):
        return mse(module(batch.x + torch.randn(batch.x.shape)).squeeze(-1), batch.y)

    with caplog.at_level(logging.INFO, "alphakernels.training"):
        result, _ = train(loss=noisy)
    assert captured.captures == 0 and captured.warmed == 1
    assert "a step draws random numbers on the host" in result.steps
    assert result.steps in caplog.text


def test_a_failed_capture_falls_back(captured, monkeypatch):
    captured.fail = "operation not permitted when stream is capturing\nmore"
    found = train()
    assert found[0].steps == (
        "steps run one kernel after the other: capturing failed: operation not permitted when stream is capturing"
    )
    assert captured.captures == 1
    monkeypatch.undo()
    same(found, train())


def test_shapes_that_do_not_come_back(captured):
    def growing(x, y):
        class Growing(RowBatches):
            def __iter__(self):
                for number in range(4):
                    yield self._batch(np.arange(30 + number), slice(0, 30 + number))

        return Growing(x, y, batch_size=32)

    result, _ = train(growing, epochs=2)
    assert captured.captures == 0
    assert result.steps == "steps run one kernel after the other: none of 4 shapes of batches came more than 3 times"


def test_a_broken_loss_is_found_in_a_replay(captured):
    def broken(x, y):
        class Broken(RowBatches):
            def __iter__(self):
                for number, batch in enumerate(super().__iter__()):
                    yield Batch(torch.full_like(batch.x, torch.inf), batch.y, batch.rows) if number == 3 else batch

        return Broken(x, y, batch_size=30)

    with pytest.raises(FloatingPointError, match="batch 3"):
        train(broken)


def test_reasons_known_beforehand():
    module = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    assert reason_against(module, optimizer, asked=False) == "capture=False"
    assert reason_against(module, optimizer, asked=True) == "the parameters are on cpu, and a graph needs one GPU"
    assert reason_against(nn.ReLU(), optimizer, asked=True) == "the parameters are on no device, and a graph needs one GPU"
    assert reason_against_optimizer(optimizer) is None
    assert "Adam keeps its state on the host" in reason_against_optimizer(torch.optim.Adam(module.parameters()))
    assert "RMSprop keeps" in reason_against_optimizer(torch.optim.RMSprop(module.parameters()))
    assert "LBFGS keeps" in reason_against_optimizer(torch.optim.LBFGS(module.parameters()))


def test_reasons_in_a_batch():
    meta = torch.device("meta")
    x = torch.empty(6, 2, device=meta)
    assert reason_against_batch(Batch(x, x[:, 0], extras={"stock": x}), meta) is None
    assert reason_against_batch(Batch(x, offsets=torch.tensor([0, 6])), meta) is None  # one day
    assert reason_against_batch(Batch(x, offsets=torch.tensor([0, 2, 6])), meta).startswith("the batches' offsets are on cpu")
    assert reason_against_batch(Batch(x, extras={"stock": torch.zeros(6)}), meta).startswith("the batches' extras['stock'] are on cpu")
    assert "a batch is no dataclass but a tuple" in reason_against_batch((x, x), meta)


def test_extras_are_replayed_with_their_values():
    graphs, seen, lr = Graphs(), [], torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    steps = Steps(lambda batch, seen: seen(batch.x.sum() + batch.extras["z"].sum()), lr, CPU, None, graphs)
    for number in range(6):
        steps(Batch(torch.full((2,), float(number)), extras={"z": torch.full((3,), 10.0 * number)}), seen.append)
    assert [float(t) for t in seen] == [32.0 * number for number in range(6)]
    assert (steps.replayed, graphs.replays) == (3, 3)
