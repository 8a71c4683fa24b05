"""The loop: it learns, keeps the best weights, stops, clips, and says what went wrong."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from alphakernels.training import Callback, NonFiniteLossError, Trainer, mse


@dataclass
class RowBatch:
    x: torch.Tensor
    y: torch.Tensor | None
    rows: np.ndarray


class Rows:
    """A minimal stream of batches, every row, the tail included."""

    def __init__(self, x, y, batch_size, shuffle=None):
        self.x, self.y, self.batch_size, self.shuffle = x, y, batch_size, shuffle

    def __len__(self):
        return math.ceil(len(self.x) / self.batch_size)

    def __iter__(self):
        order = np.arange(len(self.x))
        if self.shuffle is not None:
            self.shuffle.shuffle(order)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            yield RowBatch(self.x[rows], None if self.y is None else self.y[rows], rows)


def data(rows=150, features=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, features, generator=generator)
    y = x @ torch.linspace(-1, 1, features) + 0.1 * torch.randn(rows, generator=generator)
    return x, y


def loss(module, batch):
    return mse(module(batch.x).squeeze(-1), batch.y)


def network(features=5, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(features, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


def fit(module=None, *, rows=150, batch_size=32, valid_rows=40, fit_options=None, **options):
    module = network() if module is None else module
    x, y = data(rows)
    valid = data(valid_rows, seed=1)
    options = {"epochs": 4, "lr": 0.02, "progress": False, **options}
    batches = Rows(x, y, batch_size, np.random.RandomState(7))
    result = Trainer(**options).fit(module, loss, batches, {"valid": Rows(*valid, 32)}, **(fit_options or {}))
    return module, result


class Recorder(Callback):
    def __init__(self):
        self.calls = []
        self.weights = []

    def on_epoch_start(self, state):
        self.calls.append("start")

    def on_batch_end(self, state):
        self.calls.append(f"batch {state.batch}")

    def on_epoch_end(self, state):
        self.calls.append("end")
        self.weights.append({n: t.clone() for n, t in state.module.state_dict().items()})

    def on_train_end(self, state):
        self.calls.append("done")


def same(state, other):
    return all(torch.equal(state[name], other[name]) for name in other)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "gd", lambda p: torch.optim.AdamW(p, lr=0.02)])
def test_it_learns(optimizer):
    _, result = fit(epochs=25, optimizer=optimizer)
    assert result.history[-1]["valid"] < 0.3 * result.history[0]["valid"]
    assert set(result.history[0]) == {"epoch", "lr", "loss", "valid"}
    assert [record["epoch"] for record in result.history] == list(range(25))


def test_adam_steps_as_torch_does_it():
    module, _ = fit(epochs=2, weight_decay=0.1)
    other = network()
    optimizer = torch.optim.Adam(other.parameters(), lr=0.02, weight_decay=0.1, foreach=False)
    state = np.random.RandomState(7)
    x, y = data()
    weights = []
    for _ in range(2):
        for batch in Rows(x, y, 32, state):
            optimizer.zero_grad()
            loss(other, batch).backward()
            optimizer.step()
        weights.append({n: t.clone() for n, t in other.state_dict().items()})
    assert any(
        all(torch.allclose(t, w[n], rtol=1e-5, atol=1e-6) for n, t in module.state_dict().items()) for w in weights
    )


def test_callbacks_in_order_and_best_weights_restored():
    recorder = Recorder()
    module, result = fit(epochs=6, lr=0.8, batch_size=64, callbacks=[recorder])
    assert recorder.calls == ["start", "batch 0", "batch 1", "batch 2", "end"] * 6 + ["done"]
    values = [record["valid"] for record in result.history]
    assert result.best_epoch == int(np.argmin(values))
    assert result.best_value == min(values)
    assert same(module.state_dict(), recorder.weights[result.best_epoch])
    assert not module.training


def test_without_a_monitored_set_the_last_weights_stay():
    recorder = Recorder()
    module = network()
    result = Trainer(epochs=3, callbacks=[recorder], progress=False).fit(module, loss, Rows(*data(), 50))
    assert result.best_epoch is None
    assert result.best_value is None
    assert same(module.state_dict(), recorder.weights[-1])


def test_early_stopping_and_its_patience():
    _, result = fit(epochs=50, lr=0.0, patience=3)  # nothing improves after the first epoch's running statistics
    assert result.stopped_early
    assert len(result.history) == result.best_epoch + 4


def test_a_callback_may_add_the_monitored_value_and_stop():
    class Own(Callback):
        def on_epoch_end(self, state):
            state.record["ic"] = [0.1, 0.5, 0.3][state.epoch]
            state.should_stop = state.epoch == 2

    _, result = fit(epochs=9, monitor="ic", mode="max", callbacks=[Own()])
    assert (result.best_epoch, result.best_value, result.stopped_early) == (1, 0.5, True)


def test_unknown_monitor_is_an_error():
    with pytest.raises(ValueError, match="monitor must be one of epoch, lr, loss, valid, got 'ic'"):
        fit(monitor="ic")


def test_evaluation_weighs_every_labelled_row():
    module = network().eval()
    x, y = data(75)
    y[::3] = float("nan")
    y[64:] = float("nan")
    record = Trainer(epochs=1, lr=0.0, progress=False).fit(module, loss, Rows(*data(), 64), {"valid": Rows(x, y, 32)})
    with torch.no_grad():
        expected = mse(module(x).squeeze(-1), y).item()
    assert record.history[0]["valid"] == pytest.approx(expected, rel=1e-6)


def test_three_validation_rows_are_enough():
    _, result = fit(valid_rows=3)
    assert all(math.isfinite(record["valid"]) for record in result.history)


def test_evaluation_is_in_inference_mode_and_draws_nothing_else():
    seen = []

    def watching(module, batch):
        seen.append((module.training, torch.is_inference_mode_enabled()))
        return loss(module, batch)

    Trainer(epochs=1, progress=False).fit(network(), watching, Rows(*data(64), 64), {"valid": Rows(*data(9), 9)})
    assert seen == [(True, False), (False, True)]


def test_optimizer_and_clipping_over_subsets():
    module = network()
    frozen = module[3].weight.clone()
    gradients = {}

    class Watch(Callback):
        def on_batch_end(self, state):
            for name, parameter in module.named_parameters():
                gradients[name] = max(gradients.get(name, 0.0), float(parameter.grad.abs().max()))

    fit(
        module,
        epochs=2,
        clip_value=1e-4,
        callbacks=[Watch()],
        fit_options={"parameters": module[0].parameters(), "clip_parameters": module[3].parameters()},
    )
    assert torch.equal(module[3].weight, frozen)
    assert gradients["3.weight"] <= 1e-4 < gradients["0.weight"]


def test_clip_norm():
    norms = []

    class Watch(Callback):
        def on_batch_end(self, state):
            norms.append(torch.nn.utils.get_total_norm([p.grad for p in state.module.parameters()]).item())

    fit(epochs=1, clip_norm=1e-3, callbacks=[Watch()])
    assert max(norms) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("plateau", [False, True])
def test_scheduler_steps_each_epoch(plateau):
    def scheduler(optimizer):
        if plateau:
            return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=0, factor=0.5)
        return torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)

    _, result = fit(epochs=3, lr=0.01, scheduler=scheduler)
    rates = [record["lr"] for record in result.history]
    assert rates[0] == 0.01
    assert rates[2] < rates[0] if plateau else rates == [0.01, 0.005, 0.0025]


def test_all_nan_training_batch_leaves_finite_weights():
    x, y = data(96)
    y[:32] = float("nan")
    module = network()
    result = Trainer(epochs=2, progress=False).fit(module, loss, Rows(x, y, 32))
    assert all(torch.isfinite(t).all() for t in module.state_dict().values())
    module = network()
    labelled = [mse(module(b.x).squeeze(-1), b.y).item() for b in Rows(x[32:], y[32:], 32)]
    still = Trainer(epochs=1, lr=0.0, progress=False).fit(module, loss, Rows(x, y, 32))
    assert still.history[0]["loss"] == pytest.approx(np.mean(labelled), rel=1e-5)
    assert len(result.history) == 2


def test_evaluated_set_without_labels_is_an_error():
    x, y = data(20)
    with pytest.raises(ValueError, match="evaluated set 'valid' must have at least one finite label"):
        Trainer(epochs=1, progress=False).fit(network(), loss, Rows(*data(), 64), {"valid": Rows(x, y * math.nan, 8)})


def test_empty_batches_are_an_error():
    x, y = data(10)
    with pytest.raises(ValueError, match="'train' batches must hold at least one batch"):
        Trainer(epochs=1).fit(network(), loss, Rows(x[:0], y[:0], 8))
    with pytest.raises(ValueError, match="'valid' batches must hold at least one batch"):
        Trainer(epochs=1).fit(network(), loss, Rows(x, y, 8), {"valid": Rows(x[:0], y[:0], 8)})


class Poison(Callback):
    """Makes a value of the data NaN before epoch 2."""

    def __init__(self, values, index, value=math.nan):
        self.values, self.index, self.value = values, index, value

    def on_epoch_start(self, state):
        if state.epoch == 2:
            self.values[self.index] = self.value


@pytest.mark.parametrize("check_every", [None, 1, 8])
def test_nan_feature_names_epoch_batch_column_and_keeps_the_best(check_every):
    x, y = data(160)
    module, recorder = network(), Recorder()
    trainer = Trainer(epochs=9, progress=False, callbacks=[recorder, Poison(x, (70, 3))], check_every=check_every)
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.fit(module, loss, Rows(x, y, 32), {"valid": Rows(*data(33, seed=1), 32)}, feature_names=list("abcde"))
    error = caught.value
    assert (error.epoch, error.batch, error.column, error.segment) == (2, 2, "d", None)
    assert "in epoch 2, batch 2" in str(error)
    assert "column is 'd' (1 of 32 rows of the batch, the first is row 70 of the segment)" in str(error)
    assert [record["epoch"] for record in error.history] == [0, 1]
    assert error.best_epoch in (0, 1)
    assert same(module.state_dict(), recorder.weights[error.best_epoch])


def test_nan_in_the_evaluation_names_the_segment():
    x, y = data(50, seed=1)
    module, recorder = network(), Recorder()
    with pytest.raises(NonFiniteLossError, match="evaluation of 'valid'.*epoch 2, batch 1.*column is '4'") as caught:
        Trainer(epochs=9, progress=False, callbacks=[recorder, Poison(x, (40, 4), math.inf)]).fit(
            module, loss, Rows(*data(), 32), {"valid": Rows(x, y, 32)}
        )
    assert caught.value.segment == "valid"
    assert same(module.state_dict(), recorder.weights[caught.value.best_epoch])


def test_infinite_label_is_named():
    x, y = data(64)
    y[5] = math.inf
    with pytest.raises(NonFiniteLossError, match="label is infinite .the first is row 5") as caught:
        Trainer(epochs=1, progress=False).fit(network(), loss, Rows(x, y, 32))
    assert caught.value.column == "label"


@pytest.mark.parametrize("evaluated", [True, False])
def test_blown_up_weights_are_told_from_bad_data(evaluated):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 1))
    before = {n: t.clone() for n, t in module.state_dict().items()}
    sets = {"valid": Rows(*data(20), 20)} if evaluated else {}
    with pytest.raises(NonFiniteLossError, match="the weights or gradients blew up") as caught:
        Trainer(epochs=50, optimizer="sgd", lr=1e18, progress=False).fit(module, loss, Rows(*data(32), 32), sets)
    assert caught.value.column is None
    assert all(torch.isfinite(t).all() for t in module.state_dict().values())
    if caught.value.best_epoch is None:
        assert same(module.state_dict(), before)


def test_an_interrupt_leaves_the_best_weights():
    class Interrupt(Callback):
        def on_batch_end(self, state):
            if state.epoch == 3:
                raise KeyboardInterrupt

    module, recorder = network(), Recorder()
    with pytest.raises(KeyboardInterrupt):
        fit(module, epochs=9, callbacks=[recorder, Interrupt()])
    assert any(same(module.state_dict(), weights) for weights in recorder.weights)


def test_progress_bar_can_be_shown_and_switched_off(capfd):
    fit(epochs=2, progress=False)
    assert capfd.readouterr().err == ""
    fit(epochs=2, progress=True, name="finetune")
    shown = capfd.readouterr().err
    assert "finetune epoch 2/2" in shown
    assert "loss" in shown
    assert "10/10" in shown


def test_epochs_are_logged(caplog):
    with caplog.at_level(logging.INFO, logger="alphakernels.training"):
        fit(epochs=2, name="finetune")
    assert "finetune: epoch 2 of 2: lr 0.02, loss" in caplog.text


def test_bad_arguments():
    with pytest.raises(ValueError, match="optimizer must be one of adam, sgd, gd or a function, got 'lion'"):
        Trainer(epochs=1, optimizer="lion")
    with pytest.raises(ValueError, match="epochs must be at least 0, got -1"):
        Trainer(epochs=-1)
    with pytest.raises(ValueError, match="resume=True needs a checkpoint file"):
        fit(fit_options={"resume": True})


def test_no_epochs_leave_the_weights():
    module = network()
    before = {n: t.clone() for n, t in module.state_dict().items()}
    _, result = fit(module, epochs=0)
    assert result.history == []
    assert same(module.state_dict(), before)


def test_same_bits_with_any_number_of_threads(threads):
    states = []
    for number in (1, 2, 4):
        threads(number)
        torch.manual_seed(0)
        module = nn.Linear(300, 257)
        batches = Rows(torch.randn(64, 300), torch.randn(64, 257), 64)
        Trainer(epochs=4, weight_decay=0.01, clip_value=0.5, progress=False).fit(
            # Elementwise gradients: what is tested is the loop and the optimizer, not torch's reductions.
            module,
            lambda m, b: m.weight.square().sum() + m.bias.sin().sum(),
            batches,
        )
        states.append(module.state_dict())
    assert same(states[0], states[1])
    assert same(states[0], states[2])
