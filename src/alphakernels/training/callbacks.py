"""Callbacks: what a caller may watch, add or stop while the loop runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class TrainingState:
    """Where the loop stands; the same object goes to every callback of a training.

    Attributes:
        name: the training's name, such as "pretrain" or "finetune".
        module: the module in training, as it was given (a DistributedDataParallel stays wrapped).
        optimizer: the optimizer.
        epoch, batch: numbers of the current epoch and batch, from 0.
        loss: 0-d detached tensor, the last batch's loss; reading it with `.item()` waits for the device.
        record: the current epoch's dict. `on_epoch_end` may add keys; the monitored quantity is read after it.
        history: the dicts of all epochs, the current one included once it is complete.
        should_stop: set it to True to end the training after the current epoch.
    """

    name: str
    module: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    batch: int = 0
    loss: Tensor | None = None
    record: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    should_stop: bool = False


class Callback:
    """Override what is needed; every method does nothing by itself."""

    def on_epoch_start(self, state: TrainingState) -> None:
        """Before the first batch of an epoch."""

    def on_batch_end(self, state: TrainingState) -> None:
        """After the optimizer's step."""

    def on_epoch_end(self, state: TrainingState) -> None:
        """After the evaluation, before early stopping looks at `state.record`."""

    def on_train_end(self, state: TrainingState) -> None:
        """After the best weights are back in the module."""
