"""Early stopping: remember the best value of a monitored quantity, count the epochs that did not beat it."""

from __future__ import annotations

import math
from typing import Any


class EarlyStopping:
    """Stops when `patience` epochs brought no improvement.

    Args:
        patience: number of epochs without improvement that stop the training; None never stops.
        mode: "min" or "max", the direction of improvement; equal values and NaN are no improvement.
        cumulative: the count is not reset by an improvement. This is how Qlib's TabNet pretraining counts.
    """

    def __init__(self, patience: int | None, mode: str = "min", *, cumulative: bool = False) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"EarlyStopping: mode must be 'min' or 'max', got {mode!r}")
        if patience is not None and patience < 1:
            raise ValueError(f"EarlyStopping: patience must be at least 1 or None, got {patience}")
        self.patience = patience
        self.mode = mode
        self.cumulative = cumulative
        self.best_value = math.inf if mode == "min" else -math.inf
        self.best_epoch: int | None = None
        self.epochs_without_improvement = 0

    def update(self, epoch: int, value: float) -> bool:
        """Takes the epoch's value; True if it is the best so far."""
        better = value < self.best_value if self.mode == "min" else value > self.best_value
        if better:
            self.best_value = value
            self.best_epoch = epoch
            if not self.cumulative:
                self.epochs_without_improvement = 0
        else:
            self.epochs_without_improvement += 1
        return better

    @property
    def should_stop(self) -> bool:
        return self.patience is not None and self.epochs_without_improvement >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """What changes from epoch to epoch, as JSON values."""
        return {
            "best_value": self.best_value,
            "best_epoch": self.best_epoch,
            "epochs_without_improvement": self.epochs_without_improvement,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_value = float(state["best_value"])
        self.best_epoch = state["best_epoch"]
        self.epochs_without_improvement = int(state["epochs_without_improvement"])
