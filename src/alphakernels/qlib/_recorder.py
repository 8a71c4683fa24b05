"""Metrics to Qlib's recorder, where one is active. None is started: outside of `R.start` nothing is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlib.workflow import R

from alphakernels.training import Callback, TrainingState


def active_recorder() -> Any | None:
    """The recorder of the running experiment, or None."""
    manager = getattr(getattr(R, "_provider", None), "exp_manager", None)
    experiment = getattr(manager, "active_experiment", None)
    return getattr(experiment, "active_recorder", None)


def log_scores(evals_result: Mapping[str, list[float]]) -> None:
    """The scores by epoch, as Qlib's GRU logs them."""
    recorder = active_recorder()
    if recorder is not None:
        for name, values in evals_result.items():
            for step, value in enumerate(values):
                recorder.log_metrics(step=step, **{name: value})


class StepLog(Callback):
    """What Qlib's DNNModelPytorch logs: the loss of every step; at evaluations loss, IC, best step and learning rate."""

    def __init__(self, eval_steps: int, max_steps: int) -> None:
        self._eval_steps, self._max_steps = eval_steps, max_steps
        self._losses: list[Any] = []
        self._best = float("inf")

    def on_batch_end(self, state: TrainingState) -> None:
        self._losses.append(state.loss)

    def on_epoch_end(self, state: TrainingState) -> None:
        recorder, losses, record = active_recorder(), self._losses, state.record
        self._losses = []
        if recorder is None:
            return
        first = state.epoch * self._eval_steps + 1
        for number, loss in enumerate(losses):
            recorder.log_metrics(step=first + number, train_loss=float(loss))
        if "valid" not in record:
            return
        step = first + len(losses) - 1
        metrics = {"val_loss": record["valid"], "val_metric": record["valid_ic"], "lr": record["lr"]}
        if "train_ic" in record:
            metrics["train_metric"] = record["train_ic"]
        if record["valid"] < self._best:
            self._best, metrics["best_step"] = record["valid"], step
        recorder.log_metrics(step=step, **metrics)
