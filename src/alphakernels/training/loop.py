"""The one training loop: epochs of batches, evaluation, early stopping, the best weights back at the end.

Models differ in how batches are cut, in the loss, and in a few numbers; these are arguments here. The loop draws
from no random stream of its own: dropout and masks draw from torch's global one, shuffling from the RandomState in
the batches. Callers who must leave the global stream alone wrap the call in `torch.random.fork_rng`.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from alphakernels.training.batches import Batches, BatchLike
from alphakernels.training.callbacks import Callback, TrainingState
from alphakernels.training.capture import Steps, reason_against
from alphakernels.training.checkpoint import snapshot
from alphakernels.training.early_stopping import EarlyStopping
from alphakernels.training.nonfinite import NonFiniteLossError, check_parameters, non_finite_loss
from alphakernels.training.optimizers import OptimizerFactory, check_optimizer, make_optimizer
from alphakernels.training.progress import Progress
from alphakernels.training.resume import LoopState, load_loop, save_loop

logger = logging.getLogger("alphakernels.training")

Loss = Callable[[nn.Module, Any], Tensor]
EvaluationLoss = Callable[[nn.Module, Any], Tensor | tuple[Tensor, Tensor]]

# On a GPU reading a loss waits for the device, so losses are looked at this many batches late.
_CUDA_CHECK_EVERY = 8


@dataclass(frozen=True)
class TrainingResult:
    """What a training did.

    Attributes:
        history: one dict an epoch: "epoch", "lr", "loss" (mean while training), and one entry per evaluated set.
        best_epoch, best_value: of the monitored quantity; None without one, or if no epoch was run.
        stopped_early: early stopping or a callback ended it before the last epoch.
        steps: how the training steps ran: replayed as a CUDA graph, or why not.
    """

    history: list[dict[str, Any]]
    best_epoch: int | None
    best_value: float | None
    stopped_early: bool
    steps: str


class Trainer:
    """Trains a module.

    Args:
        epochs: the most passes over the training batches.
        optimizer: "adam", "sgd" (or "gd"), or a function from a list of parameters to an optimizer.
        lr, weight_decay: for an optimizer given by name.
        clip_value: every gradient entry is cut to [-clip_value, clip_value]; None does not.
        clip_norm: the gradient's total norm is scaled down to it; None does not.
        monitor: the entry of the epoch's record by which the best epoch is chosen; by default "valid" if a set of
            this name is evaluated, otherwise none (the last weights are kept and nothing stops early).
        mode: "min" or "max", the better direction of `monitor`.
        patience, cumulative: see `EarlyStopping`.
        scheduler: a function from the optimizer to a torch learning-rate scheduler, stepped once an epoch
            (ReduceLROnPlateau gets the monitored value).
        callbacks: see `Callback`.
        progress: a tqdm bar: True, False, or None for "where standard error is a terminal".
        checkpoint: file for resuming; None writes none.
        checkpoint_every: epochs between two writes of it (the last epoch is always written).
        check_every: batches between two looks at the losses for NaN; by default 1 on the CPU and 8 on a GPU.
        capture: replay training steps as a CUDA graph where nothing but the batches' values changes from step to step. A loss then
            must read nothing of a batch but its tensors. Where it is not done, the log and `TrainingResult.steps` say why.
        name: for the log and the bar.

    Attributes:
        history: the records of the latest `fit`, one a completed epoch; it is there after an exception, too.
    """

    def __init__(
        self,
        *,
        epochs: int,
        optimizer: str | OptimizerFactory = "adam",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        clip_value: float | None = None,
        clip_norm: float | None = None,
        monitor: str | None = None,
        mode: str = "min",
        patience: int | None = None,
        cumulative: bool = False,
        scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
        callbacks: Sequence[Callback] = (),
        progress: bool | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 1,
        check_every: int | None = None,
        capture: bool = True,
        name: str = "training",
    ) -> None:
        for what, value, least in (("epochs", epochs, 0), ("checkpoint_every", checkpoint_every, 1)):
            if value < least:
                raise ValueError(f"Trainer: {what} must be at least {least}, got {value}")
        check_optimizer(optimizer)
        callbacks = check_callbacks("Trainer", callbacks)
        EarlyStopping(patience, mode)  # raises on bad arguments now and not after the first epoch
        self.epochs = epochs
        self.optimizer = optimizer
        self.lr = lr
        self.weight_decay = weight_decay
        self.clip_value = clip_value
        self.clip_norm = clip_norm
        self.monitor = monitor
        self.mode = mode
        self.patience = patience
        self.cumulative = cumulative
        self.scheduler = scheduler
        self.callbacks = callbacks
        self.progress = progress
        self.checkpoint = checkpoint
        self.checkpoint_every = checkpoint_every
        self.check_every = check_every
        self.capture = capture
        self.name = name
        self.history: list[dict[str, Any]] = []

    def fit(
        self,
        module: nn.Module,
        loss: Loss,
        train: Batches,
        evaluate: Mapping[str, Batches] | None = None,
        *,
        evaluation_loss: EvaluationLoss | None = None,
        parameters: Iterable[nn.Parameter] | None = None,
        clip_parameters: Iterable[nn.Parameter] | None = None,
        random_state: np.random.RandomState | None = None,
        feature_names: Sequence[str] | None = None,
        fingerprint: Mapping[str, Any] | None = None,
        resume: bool = False,
    ) -> TrainingResult:
        """Trains `module` in place; it ends with the best weights, in eval mode.

        Args:
            module: may be wrapped in DistributedDataParallel: training goes through the wrapper, evaluation
                through what is inside, its sums are added over the ranks, and rank 0 writes the checkpoint.
            loss: `loss(module, batch)` -> 0-d mean over the batch's rows with a label.
            train: batches of one epoch.
            evaluate: named batches, evaluated after each epoch in this order, every row, in inference mode. The
                value is the mean of the losses, weighted by rows with a finite label (all rows without labels).
            evaluation_loss: another loss for the evaluation. It may return (mean, weight): how much the batch's mean
                counts among the batches, where that is not its rows with a label.
            parameters: what the optimizer may change; all by default.
            clip_parameters: whose gradients are clipped; all by default.
            random_state: the one that shuffles the batches, so that the checkpoint holds it.
            feature_names: for error messages.
            fingerprint: JSON values which identify the run beside the Trainer's own arguments (hyper-parameters
                of the model, a hash of the data). Resuming needs them equal.
            resume: go on from the checkpoint if there is one. The final weights are bitwise those of a run that
                was never interrupted.

        Raises:
            NonFiniteLossError: a loss is NaN or infinite. As after any other exception, the module holds the best
                weights so far (before the first completed epoch, those it came with).
            ValueError: no batches, a `monitor` that no record holds, an evaluated set without a finite label.
            CheckpointError: resuming from another model's or another run's checkpoint.
        """
        evaluate = dict(evaluate or {})
        self._check(train, evaluate, resume)
        inner = module.module if isinstance(module, DistributedDataParallel) else module
        monitor = self.monitor or ("valid" if "valid" in evaluate else None)
        optimizer = make_optimizer(
            self.optimizer,
            module.parameters() if parameters is None else parameters,
            lr=self.lr,
            weight_decay=self.weight_decay,
        )
        clipped = list(module.parameters() if clip_parameters is None else clip_parameters)
        scheduler = None if self.scheduler is None else self.scheduler(optimizer)
        stopper = EarlyStopping(self.patience, self.mode, cumulative=self.cumulative)
        saved = LoopState(inner, optimizer, stopper, snapshot(inner), scheduler, random_state)
        self.history = saved.history
        fingerprint = {**self._fingerprint(monitor, len(train)), **(fingerprint or {})}
        if resume and Path(self.checkpoint).is_file():
            load_loop(self.checkpoint, saved, fingerprint)
            logger.info("%s: resuming after epoch %d of %d", self.name, len(saved.history), self.epochs)

        state = TrainingState(self.name, module, optimizer, epoch=len(saved.history), history=saved.history)
        steps = self._steps(state, loss, clipped)
        bar = Progress(self.name, self.epochs, len(train), first_epoch=state.epoch, shown=self.progress)
        try:
            while not saved.finished and len(saved.history) < self.epochs:
                epoch = state.epoch = len(saved.history)
                bar.epoch(epoch)
                state.record = {"epoch": epoch, "lr": optimizer.param_groups[0]["lr"]}
                self._call("on_epoch_start", state)
                state.record["loss"] = self._train_epoch(state, steps, train, feature_names, bar)
                for name, batches in evaluate.items():
                    state.record[name] = self._evaluate(
                        module, evaluation_loss or loss, batches, name, epoch, feature_names
                    )
                if not evaluate:
                    check_parameters(inner, epoch)
                self._call("on_epoch_end", state)
                self._close_epoch(state, saved, monitor)
                bar.evaluated({name: state.record[name] for name in evaluate})
                due = saved.finished or (epoch + 1) % self.checkpoint_every == 0
                if self.checkpoint is not None and due and _is_first_rank():
                    save_loop(self.checkpoint, saved, fingerprint)
        except NonFiniteLossError as error:
            error.history = list(saved.history)
            error.best_epoch = stopper.best_epoch if monitor else (len(saved.history) - 1 if saved.history else None)
            raise
        finally:
            bar.close()
            # On any way out, an interrupt included, the module is left with the best weights there are.
            inner.load_state_dict(saved.best)
            module.eval()
        self._call("on_train_end", state)
        logger.info("%s: %s", self.name, steps.report)
        known = monitor is not None and stopper.best_epoch is not None
        return TrainingResult(
            history=saved.history,
            best_epoch=stopper.best_epoch,
            best_value=stopper.best_value if known else None,
            stopped_early=saved.stopped_early,
            steps=steps.report,
        )

    def _steps(self, state: TrainingState, loss: Loss, clipped: list[nn.Parameter]) -> Steps:
        """What runs the training's steps."""
        module, optimizer = state.module, state.optimizer
        parameters = list(module.parameters())

        def step(batch: BatchLike, seen: Callable[[Tensor], None]) -> None:
            for parameter in parameters:  # what zero_grad does, which goes through all modules by name each time
                parameter.grad = None
            value = loss(module, batch)
            seen(value.detach())
            value.backward()
            if self.clip_value is not None:
                nn.utils.clip_grad_value_(clipped, self.clip_value)
            if self.clip_norm is not None:
                nn.utils.clip_grad_norm_(clipped, self.clip_norm)
            optimizer.step()

        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        return Steps(step, optimizer, device, reason_against(module, optimizer, asked=self.capture))

    def _check(self, train: Batches, evaluate: Mapping[str, Batches], resume: bool) -> None:
        if resume and self.checkpoint is None:
            raise ValueError("Trainer: resume=True needs a checkpoint file, got checkpoint=None")
        for name, batches in {"train": train, **evaluate}.items():
            if len(batches) == 0:
                raise ValueError(f"Trainer: the {name!r} batches must hold at least one batch, got none")

    def _fingerprint(self, monitor: str | None, batches: int) -> dict[str, Any]:
        def named(value: Any) -> Any:
            return (
                value if value is None or isinstance(value, str) else getattr(value, "__qualname__", str(type(value)))
            )

        return {
            "training": self.name,
            "epochs": self.epochs,
            "optimizer": named(self.optimizer),
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "clip_value": self.clip_value,
            "clip_norm": self.clip_norm,
            "monitor": monitor,
            "mode": self.mode,
            "patience": self.patience,
            "cumulative": self.cumulative,
            "scheduler": named(self.scheduler),
            "batches per epoch": batches,
        }

    def _call(self, method: str, state: TrainingState) -> None:
        for callback in self.callbacks:
            getattr(callback, method)(state)

    def _train_epoch(
        self,
        state: TrainingState,
        steps: Steps,
        batches: Batches,
        feature_names: Sequence[str] | None,
        bar: Progress,
    ) -> float:
        state.module.train()
        check_every = self.check_every or (_CUDA_CHECK_EVERY if _on_cuda(state.module) else 1)
        losses: list[Tensor] = []
        weights: list[Tensor] = []
        unchecked: list[BatchLike] = []

        def check() -> None:
            first = len(losses) - len(unchecked)
            values = torch.stack(losses[first:]).tolist()
            for offset, (value, batch) in enumerate(zip(values, unchecked, strict=True)):
                if not math.isfinite(value):
                    raise non_finite_loss(
                        value, batch, epoch=state.epoch, number=first + offset, feature_names=feature_names
                    )
            unchecked.clear()
            bar.loss(values[-1])

        for state.batch, batch in enumerate(batches):

            def seen(loss: Tensor, batch: BatchLike = batch) -> None:
                state.loss = loss
                losses.append(loss)
                weights.append(_weight(batch, loss))
                unchecked.append(batch)
                if len(unchecked) >= check_every:
                    check()

            steps(batch, seen)
            bar.batch()
            self._call("on_batch_end", state)
        if unchecked:
            check()
        return _weighted_mean(losses, weights)

    def _evaluate(
        self,
        module: nn.Module,
        loss: EvaluationLoss,
        batches: Batches,
        name: str,
        epoch: int,
        feature_names: Sequence[str] | None,
    ) -> float:
        distributed = isinstance(module, DistributedDataParallel)
        inner = module.module if distributed else module
        module.eval()
        losses: list[Tensor] = []
        weights: list[Tensor] = []
        with torch.inference_mode():
            for batch in batches:
                value = loss(inner, batch)
                mean, weight = value if isinstance(value, tuple) else (value, _weight(batch, value))
                losses.append(mean.detach())
                weights.append(weight.to(device=mean.device, dtype=torch.float64))
            finite = torch.isfinite(torch.stack(losses))
            if not bool(finite.all()):
                number = int((~finite).nonzero()[0])
                batch = next(b for n, b in enumerate(batches) if n == number)
                raise non_finite_loss(
                    float(losses[number]),
                    batch,
                    epoch=epoch,
                    number=number,
                    segment=name,
                    feature_names=feature_names,
                )
            value = _weighted_mean(losses, weights, over_ranks=distributed)
        if math.isnan(value):
            if not any(batch.y is None or bool(torch.isfinite(batch.y).any()) for batch in batches):
                raise ValueError(f"Trainer: the evaluated set {name!r} must have at least one finite label, got none")
            raise ValueError(
                f"Trainer: what is measured on the evaluated set {name!r} is undefined, though it has finite labels: no batch counts. "
                "A correlation by day (metric='ic') needs a day with at least two labelled stocks, whose labels differ and whose "
                "scores differ; choose the epoch by the loss instead (metric='')"
            )
        return value

    def _close_epoch(self, state: TrainingState, saved: LoopState, monitor: str | None) -> None:
        """Books the epoch: history, best weights, early stopping, scheduler, log."""
        record = state.record
        if monitor is not None and monitor not in record:
            raise ValueError(f"Trainer: monitor must be one of {', '.join(record)}, got {monitor!r}")
        saved.history.append(record)
        if monitor is None or saved.stopper.update(state.epoch, float(record[monitor])):
            saved.best = snapshot(saved.module)
        if saved.scheduler is not None:
            if isinstance(saved.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                saved.scheduler.step(record[monitor] if monitor is not None else record["loss"])
            else:
                saved.scheduler.step()
        stopped = saved.stopper.should_stop or state.should_stop
        saved.stopped_early = stopped and len(saved.history) < self.epochs
        saved.finished = stopped or len(saved.history) == self.epochs
        shown = ", ".join(f"{key} {value:.6g}" for key, value in record.items() if isinstance(value, float))
        logger.info("%s: epoch %d of %d: %s", self.name, state.epoch + 1, self.epochs, shown)
        if saved.stopped_early:
            logger.info("%s: stopped early; the best epoch was %s", self.name, saved.stopper.best_epoch)


def check_callbacks(owner: str, callbacks: Any) -> tuple[Callback, ...]:
    """The callbacks, or anything with their methods.

    Raises:
        TypeError: no list, or something else in it.
    """
    if isinstance(callbacks, str) or not isinstance(callbacks, Iterable):
        raise TypeError(f"{owner}: callbacks must be a list of Callback objects, got {_kind(callbacks)}; put it in a list")
    callbacks = tuple(callbacks)
    methods = [name for name in vars(Callback) if name.startswith("on_")]
    for callback in callbacks:
        if isinstance(callback, type) or not all(callable(getattr(callback, name, None)) for name in methods):
            raise TypeError(
                f"{owner}: callbacks must be objects of a subclass of alphakernels.training.Callback, which has {', '.join(methods)}; "
                f"got {_kind(callback)}"
            )
    return callbacks


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def _weight(batch: BatchLike, like: Tensor) -> Tensor:
    """How many rows the batch's mean loss speaks for, as a float64 scalar on the loss's device."""
    if batch.y is None:
        # Filled there, because a copy from the host would wait for the device.
        return torch.full((), len(batch.rows), dtype=torch.float64, device=like.device)
    return torch.isfinite(batch.y).sum(dtype=torch.float64).to(like.device)


def _weighted_mean(losses: list[Tensor], weights: list[Tensor], *, over_ranks: bool = False) -> float:
    weight = torch.stack(weights)
    sums = torch.stack([(torch.stack(losses).double() * weight).sum(), weight.sum()])
    if over_ranks:
        torch.distributed.all_reduce(sums)
    total, count = sums.tolist()
    return total / count if count else math.nan


def _on_cuda(module: nn.Module) -> bool:
    return any(p.device.type == "cuda" for p in module.parameters())


def _is_first_rank() -> bool:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not distributed or torch.distributed.get_rank() == 0
