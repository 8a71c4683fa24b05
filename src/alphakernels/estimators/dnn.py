"""DNNModelPytorch: a network trained by steps on random draws of rows, as Qlib's qlib.contrib.model.pytorch_nn does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from alphakernels.data import Batch, RowBatches
from alphakernels.data.gather import Gather
from alphakernels.estimators._any_network import AnyNetworkEstimator, _import, my_share
from alphakernels.estimators._base import FitContext
from alphakernels.training import Callback, Trainer, TrainingState, binary, ic_by_day, mse

# Of Qlib's training.
_PLATEAU = {"mode": "min", "factor": 0.5, "patience": 10, "threshold": 1e-4, "min_lr": 1e-5, "eps": 1e-8}

Scheduler = Callable[..., Any]


class DNNModelPytorch(AnyNetworkEstimator):
    """A network trained by steps: each takes `batch_size` rows drawn with replacement; every `eval_steps` steps it is evaluated.

    Args:
        lr: learning rate. weight_decay: of the optimizer. optimizer: "gd" or "adam".
        max_steps: the most steps. batch_size: rows a step. eval_steps: steps between two evaluations.
        early_stop_rounds: evaluations without improvement until it stops.
        loss: "mse", or "binary" (logits against labels 0 and 1).
        GPU: int, str, torch.device, or -1 for the CPU. seed: of everything random; None takes another each time.
        data_parall: train in the processes of torch.distributed (DistributedDataParallel), each on its share of a step's rows.
        scheduler: "default" halves the learning rate after 10 evaluations without improvement, down to 1e-5; None; or a
            function (or its import path) from the argument `optimizer` to a scheduler, which is stepped at evaluations.
        init_model: a network to start from, which is copied; None makes one from pt_model_uri and pt_model_kwargs.
        eval_train_metric: also measure the IC of the training rows at each evaluation.
        pt_model_uri: the network, a class or its import path; Qlib's networks are answered with ours.
        pt_model_kwargs: its keyword arguments; None are Qlib's for the default network, none for another.
        valid_key: which view of the data a Qlib dataset validates on: "learn" or "infer"; of no effect on other datasets.
        missing: NaN in features: "error" names the columns; "fill" takes the column's mean in training, zero elsewhere.
        progress: a progress bar: True, False, or None for "where standard error is a terminal".

    Without a segment "valid" all steps are taken, and the last weights stay. Rows whose label is NaN have no say.

    Raises:
        ValueError: an argument outside what is said above, or a network that cannot be found.
        TypeError: wrong arguments of the network; the nearest right one is named.
    """

    _default = ("qlib.contrib.model.pytorch_nn.Net", {"input_dim": 360, "layers": (256,)})

    def __init__(
        self,
        lr: float = 0.001,
        max_steps: int = 300,
        batch_size: int = 2000,
        early_stop_rounds: int = 50,
        eval_steps: int = 20,
        optimizer: str = "gd",
        loss: str = "mse",
        GPU: int | str | torch.device = 0,
        seed: int | None = None,
        weight_decay: float = 0.0,
        data_parall: bool = False,
        scheduler: str | Scheduler | None = "default",
        init_model: nn.Module | None = None,
        eval_train_metric: bool = False,
        pt_model_uri: str | type[nn.Module] = "qlib.contrib.model.pytorch_nn.Net",
        pt_model_kwargs: Mapping[str, Any] | None = None,
        valid_key: str = "learn",
        missing: Literal["error", "fill"] = "error",
        progress: bool | None = None,
    ) -> None:
        self._initialise(locals())
        self._check(optimizer=("adam", "gd", "sgd"), loss=("mse", "binary"), missing=("error", "fill"), valid_key=("learn", "infer"))

    def _fit(self, context: FitContext) -> None:
        network = self._network(len(context.features)) if self.init_model is None else copy.deepcopy(self.init_model)
        reweighter = context.reweighter
        train = self._load(context.dataset, "train", label=True, fill="mean", reweighter=reweighter)
        has_valid = "valid" in context.dataset.segments
        valid = self._load(context.dataset, "valid", label=True, fill="zero", reweighter=reweighter) if has_valid else None
        module, device = self._distributed(context, network)
        share, ranks = my_share(self.data_parall)
        loss_of = mse if self.loss == "mse" else binary

        def loss(module: nn.Module, batch: Any) -> Tensor:
            weight = None if batch.weight is None else batch.weight[share]
            mean = loss_of(self._outputs(module, batch.x[share]).reshape(-1), batch.y[share], weight)
            # This process's part of the step's mean, times the number of processes, by which their gradients are divided.
            seen = torch.isfinite(batch.y)
            return mean if ranks == 1 else mean * seen[share].sum() / seen.sum().clamp(min=1) * ranks

        def evaluation_loss(module: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
            scores = self._scores(module, batch)
            measured.take(batch, scores)
            return loss_of(scores, batch.y, batch.weight), torch.isfinite(batch.y).sum() / ranks

        steps = DrawnBatches(
            train.x,
            train.y,
            weight=train.weight,
            device=device,
            batch_size=self.batch_size,
            steps=self.max_steps,
            every=self.eval_steps,
            random_state=context.random_state,
        )
        sets = {}
        if valid is not None:
            sets["valid"] = RowBatches(valid.x, valid.y, batch_size=self.batch_size, weight=valid.weight, device=device)
            if self.eval_train_metric:
                # Before "valid", whose scores are measured last.
                sets = {"train": RowBatches(train.x, train.y, batch_size=self.batch_size, weight=train.weight, device=device), **sets}
        measured = _Measured({"train": train.index, "valid": None if valid is None else valid.index}, list(sets))
        trainer = Trainer(
            epochs=-(-self.max_steps // self.eval_steps),
            optimizer=self.optimizer,
            lr=self.lr,
            weight_decay=self.weight_decay,
            patience=None if valid is None else self.early_stop_rounds,
            scheduler=self._scheduler(),
            callbacks=(steps, measured, *context.callbacks),
            progress=self.progress,
            capture=context.capture,
            checkpoint=context.checkpoint("train"),
            name="train",
        )
        try:
            trainer.fit(
                module,
                loss,
                steps,
                sets,
                evaluation_loss=evaluation_loss,
                random_state=context.random_state,
                feature_names=context.features,
                fingerprint=self._fingerprint(context, train=train, **({} if valid is None else {"valid": valid})),
                resume=context.resume,
            )
        finally:
            # Qlib divides by eval_steps also where fewer steps were left.
            context.evals_result["train"] = [r["loss"] * steps.count(r["epoch"]) / self.eval_steps for r in trainer.history]
            if valid is not None:
                context.evals_result["valid"] = [record["valid"] for record in trainer.history]
            # Also after an error or an interrupt: the network then holds the best weights so far.
            if trainer.history:
                self._keep(network, context.known_features, len(context.features))
        self._keep(network, context.known_features, len(context.features))

    def _scheduler(self) -> Callable[[torch.optim.Optimizer], Any] | None:
        if self.scheduler is None:
            return None
        if self.scheduler == "default":
            return lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **_PLATEAU)
        make = _import(self.scheduler) if isinstance(self.scheduler, str) else self.scheduler
        return lambda optimizer: make(optimizer=optimizer)


class DrawnBatches(Gather, Callback):
    """Batches of rows drawn with replacement from NumPy's legacy stream: an epoch is the next `every` steps of `steps`.

    As a callback it learns which epoch it is.
    """

    def __init__(
        self,
        x: Any,
        y: np.ndarray,
        *,
        batch_size: int,
        steps: int,
        every: int,
        random_state: np.random.RandomState,
        **more: Any,
    ) -> None:
        super().__init__(x, y, **more)
        self.batch_size = batch_size
        self._steps, self._every, self._random_state = steps, every, random_state
        self.epoch = 0

    def __len__(self) -> int:
        return min(self._every, self._steps)

    def on_epoch_start(self, state: TrainingState) -> None:
        self.epoch = state.epoch

    def count(self, epoch: int) -> int:
        """Steps of an epoch."""
        return max(0, min(self._every, self._steps - epoch * self._every))

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.count(self.epoch)):
            rows = self._random_state.choice(self.n_rows, self.batch_size)
            yield self._batch(rows, self._at_rest(rows))


class _Measured(Callback):
    """Adds the IC of what was evaluated to the epoch's record, as "train_ic" and "valid_ic"."""

    def __init__(self, indices: Mapping[str, pd.MultiIndex | None], order: list[str]) -> None:
        self._indices, self._order = indices, order
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []

    def take(self, batch: Any, scores: Tensor) -> None:
        self._parts.append((scores.detach().float().cpu().numpy(), batch.y.cpu().numpy()))

    def on_epoch_end(self, state: TrainingState) -> None:
        parts, self._parts = self._parts, []
        if not parts:
            return
        scores, label = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        begin = 0
        for name in self._order:  # the sets come one after the other, each in its index's order
            index = self._indices[name]
            piece = slice(begin, begin + len(index))
            begin += len(index)
            ic = ic_by_day(pd.Series(scores[piece], index=index), pd.Series(label[piece], index=index))
            state.record[f"{name}_ic"] = float(ic.mean())
