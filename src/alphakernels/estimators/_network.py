"""One network, one loss: what the estimators of Qlib's sequence and graph models share. A model adds its network and defaults.

Whether the samples are rows [F * T] (Qlib's in-memory models) or windows [T, F] (its `_ts` models) follows from the dataset.
Training is Qlib's loop: batches in Qlib's shuffled order, mean squared error where a label is, gradients clipped at 3.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from alphakernels.data import Batch, DayBatches, RowBatches, WindowBatches
from alphakernels.estimators._base import Estimator, FitContext
from alphakernels.estimators._device import resolve_device
from alphakernels.estimators._qlib_checkpoint import read_state_dict
from alphakernels.estimators._segments import Rows
from alphakernels.training import Trainer, daily_ic, daily_mse, load_module_state, mse

CLIP_VALUE = 3.0
EVALUATED_ROWS = 2048  # a batch at least, where nothing depends on it: evaluation, prediction, several small days in one call
CHOICES = {
    "optimizer": ("adam", "gd", "sgd"),
    "loss": ("mse",),
    "metric": ("", "loss", "mse", "ic"),
    "missing": ("error", "fill"),
    "base_model": ("GRU", "LSTM", "MLP"),
    "variant": ("qlib", "paper"),
    "memory": ("auto", "low"),
}


class NetworkEstimator(Estimator):
    """Base of the estimators with one network.

    Attributes:
        d_feat_: features a day of the fitted network. step_len_: days a window, None for rows; known after `fit` and `load`.
    """

    _takes_windows = True
    # Of a subclass: its network, and which constructor arguments the network takes under the same name.
    _network_class: ClassVar[type[nn.Module]]
    _network_parameters: ClassVar[tuple[str, ...]]
    _by_day: ClassVar[bool] = False
    _only_labelled: ClassVar[bool] = False  # leaves rows without label out of the data, so that batches are full of labels

    d_feat_: int | None = None
    step_len_: int | None = None
    d_feat: int | None
    n_epochs: int
    lr: float
    metric: str
    early_stop: int
    optimizer: str
    drop_tail: bool = False
    progress: bool | None

    def _initialise(self, parameters: dict[str, Any]) -> None:
        super()._initialise(parameters)
        for name, allowed in CHOICES.items():
            if name in self._parameter_names():
                value = getattr(self, name)
                if (str(value).lower() if name == "optimizer" else value) not in allowed:
                    raise ValueError(f"{type(self).__name__}: {name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")

    def _network(self, n_features: int) -> nn.Module:
        return self._network_class(self.d_feat_, **{name: getattr(self, name) for name in self._network_parameters})

    def _scores(self, module: nn.Module, batch: Batch) -> Tensor:
        return module(batch.x)

    def _prepare(self, context: FitContext) -> None:
        """What a subclass needs before its network is built."""

    def _pretrained(self, network: nn.Module) -> None:
        """Where a subclass puts pretrained weights into a fresh network."""

    def _fit(self, context: FitContext) -> None:
        has_valid = "valid" in context.dataset.segments
        segments = {name: self._segment(context, name) for name in ("train", "valid")[: 1 + has_valid]}
        self.step_len_ = segments["train"].step_len
        self.d_feat_ = self._days_features(context.features)
        self._prepare(context)
        # The random stream runs as Qlib's: first the weights, then the batches.
        network = self._network(len(context.features))
        self._pretrained(network)
        network.to(context.device)
        trainer = Trainer(
            epochs=self.n_epochs,
            optimizer=self.optimizer,
            lr=self.lr,
            weight_decay=getattr(self, "reg", 0.0),
            clip_value=CLIP_VALUE,
            mode="max" if self.metric == "ic" else "min",
            patience=self.early_stop,
            callbacks=context.callbacks,
            progress=self.progress,
            capture=context.capture,
            checkpoint=context.checkpoint("train"),
            name="train",
        )
        try:
            trainer.fit(
                network,
                lambda module, batch: mse(self._scores(module, batch), batch.y, batch.weight),
                self._training_batches(context, segments["train"]),
                {name: self._evaluation_batches(rows, context.device, name) for name, rows in segments.items()},
                evaluation_loss=self._evaluation,
                random_state=context.random_state,
                feature_names=context.features,
                fingerprint=self._fingerprint(context, **segments),
                resume=context.resume,
            )
        finally:
            sign = 1 if self.metric == "ic" else -1
            for name in segments:
                context.evals_result[name] = [sign * record[name] for record in trainer.history]
            # Also after an error or an interrupt: the network then holds the best weights so far.
            if trainer.history:
                self._keep(network, context.known_features, len(context.features))
        self._keep(network, context.known_features, len(context.features))

    def _segment(self, context: FitContext, name: str) -> Rows:
        reweighter = context.reweighter if name == "train" else None
        rows = self._load(context.dataset, name, label=True, fill="zero", reweighter=reweighter)
        return rows.labelled() if self._only_labelled and rows.step_len is None else rows

    def _days_features(self, features: Sequence[str]) -> int:
        """Features a day, by the dataset and `d_feat`."""
        owner = type(self).__name__
        if self.step_len_ is not None:
            if self.d_feat not in (None, len(features)):
                raise ValueError(
                    f"{owner}: d_feat must be the dataset's number of features, {len(features)}, got {self.d_feat}; "
                    "d_feat=None takes it from the dataset"
                )
            return len(features)
        if self.d_feat is None:
            return fields_of(features, owner)
        if len(features) % self.d_feat:
            raise ValueError(
                f"{owner}: rows must hold d_feat = {self.d_feat} features over all their days, one after the other, but "
                f"{len(features)} columns are no multiple of it; single days of features go as dataset.windows(step_len)"
            )
        return self.d_feat

    def _training_batches(self, context: FitContext, rows: Rows) -> RowBatches | DayBatches:
        if self._by_day:
            return self._day_batches(rows, context.device, self.days_per_step, shuffle=context.random_state)
        options = {"batch_size": self.batch_size, "drop_last": True, "device": context.device, "weight": rows.weight}
        if rows.step_len is not None:
            return WindowBatches(rows.x, rows.y, shuffle=True, **options)
        return RowBatches(rows.x, rows.y, shuffle=context.random_state, **options)

    def _evaluation_batches(self, rows: Rows, device: torch.device, name: str) -> RowBatches | DayBatches:
        if self._by_day or self.metric == "ic":
            return self._day_batches(rows, device)
        # The tail that is dropped depends on the order and the size of the batches; a mean over all rows does not.
        size = self.batch_size if self.drop_tail else max(self.batch_size, EVALUATED_ROWS)
        options = {"batch_size": size, "drop_last": self.drop_tail, "device": device}
        if rows.step_len is not None:
            # Qlib evaluates the training set through its shuffling loader, which the random stream shows.
            return WindowBatches(rows.x, rows.y, shuffle=name == "train", in_order=not self.drop_tail, **options)
        return RowBatches(rows.x, rows.y, **options)

    def _day_batches(self, rows: Rows, device: torch.device, days_per_batch: int | None = None, **options: Any) -> DayBatches:
        """Batches of days, by default of so many that they hold about `EVALUATED_ROWS` rows."""
        day = rows.days()
        if days_per_batch is None:
            days_per_batch = max(1, EVALUATED_ROWS * len(np.unique(day)) // len(day))
        return DayBatches(
            rows.x,
            rows.y,
            day=day,
            days_per_batch=days_per_batch,
            device=device,
            weight=rows.weight,
            extras=self._row_extras(rows),
            **options,
        )

    def _row_extras(self, rows: Rows) -> dict[str, np.ndarray]:
        """What the network needs of each row beside x, by name."""
        return {}

    def _prediction_batches(self, rows: Rows, device: torch.device) -> Iterable[Batch]:
        if self._by_day:
            return self._day_batches(rows, device)
        order = None if rows.step_len is None else rows.x.by_instrument()  # see WindowBatches, which would draw
        return RowBatches(rows.x, batch_size=max(self.batch_size, EVALUATED_ROWS), order=order, device=device)

    def _evaluation(self, module: nn.Module, batch: Batch) -> Tensor | tuple[Tensor, Tensor]:
        """The loss of a batch, or with metric "ic" its mean daily correlation; by days where the batch is one of days."""
        scores = self._scores(module, batch)
        if batch.offsets is None:
            return mse(scores, batch.y)
        return (daily_ic if self.metric == "ic" else daily_mse)(scores, batch.y, batch.offsets)

    def _rows_to_predict(self, dataset: Any, segment: str) -> Rows:
        rows = super()._rows_to_predict(dataset, segment)
        if rows.step_len != self.step_len_:
            names = ["rows" if days is None else f"windows of {days} days" for days in (self.step_len_, rows.step_len)]
            raise ValueError(f"{type(self).__name__}: the dataset must have {names[0]} as in training, got {names[1]}")
        return rows

    def _extra(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"d_feat": self.d_feat_, "step_len": self.step_len_}

    def _restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self.d_feat_, self.step_len_ = values["d_feat"], values["step_len"]

    def load_qlib_checkpoint(self, path: str | os.PathLike[str], n_features: int, step_len: int | None = None) -> NetworkEstimator:
        """Takes the weights of Qlib's fitted model, from the state dict its `fit` saved with torch.save.

        The hyper-parameters are this model's. Feature names are not known to such a file, so `predict` checks their number only.

        Args:
            n_features: columns of the datasets to predict on.
            step_len: days a window if these are windows, None for rows.

        Raises:
            FileNotFoundError: no such file.
            CheckpointError: not a state dict that can be read without running code, or of another model.
        """
        state = read_state_dict(path)
        self.step_len_ = step_len
        self.d_feat_ = self._days_features([str(number) for number in range(n_features)])
        with torch.random.fork_rng(devices=[]):
            network = self._network(n_features)
        load_module_state(network, state, source=f"checkpoint {os.fspath(path)}", saved_class=f"Qlib's {type(self).__name__}")
        self._keep(network.to(resolve_device(self.GPU)), None, n_features)
        return self


def fields_of(features: Sequence[str], owner: str) -> int:
    """How many fields rows hold, by names such as CLOSE59, ..., CLOSE0, OPEN59, ...: field after field, all with the same lags.

    Raises:
        ValueError: other names.
    """
    parts = [re.fullmatch(r"(.*?)(\d+)", name) for name in features]
    fields = list(dict.fromkeys(part[1] for part in parts if part))
    if all(parts) and len(features) % len(fields) == 0:
        lags = [part[2] for part in parts[: len(features) // len(fields)]]
        if [part[0] for part in parts] == [field + lag for field in fields for lag in lags]:
            return len(fields)
    raise ValueError(
        f"{owner}: d_feat=None needs windows, or rows whose columns are named by field and lag such as CLOSE1, CLOSE0, OPEN1, "
        f"OPEN0; got {', '.join(features[:4])}, ...: give d_feat, or dataset.windows(step_len) where a row holds one day"
    )
