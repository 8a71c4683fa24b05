"""Optimizers by the names that Qlib's models use: "adam", and "sgd" or its old name "gd"."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

OptimizerFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

_CLASSES = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD, "gd": torch.optim.SGD}


def check_optimizer(optimizer: str | OptimizerFactory) -> None:
    """Raises ValueError for a name that is not known."""
    if isinstance(optimizer, str) and optimizer.lower() not in _CLASSES:
        raise ValueError(f"optimizer must be one of {', '.join(_CLASSES)} or a function, got {optimizer!r}")


def make_optimizer(
    optimizer: str | OptimizerFactory, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Builds the optimizer; a function takes the list of parameters and decides all by itself.

    PyTorch's fused implementation (one pass over the parameters) is used where it exists; on a GPU it can be captured in a graph.
    """
    check_optimizer(optimizer)
    parameters = list(parameters)
    if not isinstance(optimizer, str):
        return optimizer(parameters)
    fused = all(p.device.type in ("cpu", "cuda") and p.dtype in (torch.float32, torch.float64) for p in parameters)
    cls = _CLASSES[optimizer.lower()]
    on_gpu = {"capturable": True} if cls is torch.optim.Adam and fused and all(p.is_cuda for p in parameters) else {}
    made = cls(parameters, lr=lr, weight_decay=weight_decay, fused=fused, **on_gpu)
    if on_gpu:  # torch would warn that the first steps are not captured
        made._warned_capturable_if_run_uncaptured = True
    return made
