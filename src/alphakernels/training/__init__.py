"""Training: one loop for every model, with its losses, metrics, early stopping, checkpoints and callbacks.

The loop knows no model: it takes a module, a function `loss(module, batch) -> Tensor`, and batches.
"""

from __future__ import annotations

from alphakernels.training.batches import Batches, BatchLike
from alphakernels.training.callbacks import Callback, TrainingState
from alphakernels.training.checkpoint import CheckpointError, load_module_state, load_tensors, save_tensors
from alphakernels.training.daily import daily_ic, daily_mse
from alphakernels.training.early_stopping import EarlyStopping
from alphakernels.training.loop import Trainer, TrainingResult
from alphakernels.training.losses import binary, mse
from alphakernels.training.metrics import ic_by_day, ic_summary, rank_ic_by_day
from alphakernels.training.nonfinite import NonFiniteLossError

__all__ = [
    "BatchLike",
    "Batches",
    "Callback",
    "CheckpointError",
    "EarlyStopping",
    "NonFiniteLossError",
    "Trainer",
    "TrainingResult",
    "TrainingState",
    "binary",
    "daily_ic",
    "daily_mse",
    "ic_by_day",
    "ic_summary",
    "load_module_state",
    "load_tensors",
    "mse",
    "rank_ic_by_day",
    "save_tensors",
]
