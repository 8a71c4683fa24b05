"""A loss that is NaN or infinite: an error which says where it came from, instead of a run that is lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from alphakernels.training.batches import BatchLike


class NonFiniteLossError(FloatingPointError):
    """The loss became NaN or infinite. By the time it is raised the best weights so far are back in the module.

    Attributes:
        epoch, batch: where, from 0 (batch is None where the weights were found broken after the epoch).
        segment: name of the evaluated batches, or None in training.
        column: the first feature with a NaN or infinite value in the batch, "label", or None (input finite).
        history: the records of the completed epochs.
        best_epoch: the epoch whose weights the module now holds, or None if no epoch was completed: it then
            holds the weights that training started from.
    """

    def __init__(
        self,
        message: str,
        *,
        epoch: int,
        batch: int | None = None,
        segment: str | None = None,
        column: str | None = None,
    ) -> None:
        super().__init__(message)
        self.epoch = epoch
        self.batch = batch
        self.segment = segment
        self.column = column
        self.history: list[dict[str, Any]] = []
        self.best_epoch: int | None = None


BLOWN_UP = (
    "the weights or gradients blew up; lower the learning rate, clip the gradients, or bring the features to a "
    "common scale"
)


def non_finite_loss(
    loss: float,
    batch: BatchLike,
    *,
    epoch: int,
    number: int,
    segment: str | None = None,
    feature_names: Sequence[str] | None = None,
) -> NonFiniteLossError:
    """The error for batch `number`, whose loss was not finite."""
    where = "training" if segment is None else f"evaluation of {segment!r}"
    column, fault = _first_fault(batch, feature_names)
    message = f"{where}: the loss must be finite, got {loss} in epoch {epoch}, batch {number}: {fault}"
    return NonFiniteLossError(message, epoch=epoch, batch=number, segment=segment, column=column)


def check_parameters(module: nn.Module, epoch: int) -> None:
    """Raises if a parameter is not finite: the only witness of a last step that blew up, where nothing is evaluated."""
    for name, parameter in module.named_parameters():
        if not bool(torch.isfinite(parameter.detach()).all()):
            message = f"training: the weights must be finite, got NaN or infinity in {name!r} after epoch {epoch}"
            raise NonFiniteLossError(f"{message}: {BLOWN_UP}", epoch=epoch)


def _first_fault(batch: BatchLike, feature_names: Sequence[str] | None) -> tuple[str | None, str]:
    """The first column with a non-finite value, and what to say about it."""
    bad = ~torch.isfinite(batch.x)  # [B, ..., D]
    columns = bad.flatten(0, -2).any(dim=0).nonzero().flatten()
    if columns.numel():
        number = int(columns[0])
        name = str(feature_names[number]) if feature_names is not None else str(number)
        bad_rows = bad[..., number].flatten(1).any(dim=1) if bad.dim() > 2 else bad[:, number]
        first = int(batch.rows[int(bad_rows.nonzero()[0])])
        return name, (
            f"the first non-finite feature column is {name!r} ({int(bad_rows.sum())} of {len(bad_rows)} rows of the "
            f"batch, the first is row {first} of the segment); fill or drop these values"
        )
    if batch.y is not None and bool(torch.isinf(batch.y).any()):
        first = int(batch.rows[int(torch.isinf(batch.y).flatten().nonzero()[0]) // (batch.y[0].numel() or 1)])
        return (
            "label",
            f"the label is infinite (the first is row {first} of the segment); drop or clip such labels",
        )
    return None, f"the features and labels of the batch are finite, so {BLOWN_UP}"
