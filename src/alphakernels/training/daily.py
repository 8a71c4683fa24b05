"""What is measured day by day in a batch of days, where each day counts alike: mean squared error, and IC."""

from __future__ import annotations

import torch
from torch import Tensor

from alphakernels.training.losses import mse


def daily_mse(prediction: Tensor, label: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over days of the day's mean squared error, and the number of days that have a label.

    Args:
        prediction, label: [B]; NaN in the label means not observed.
        offsets: int64 [days + 1] on the CPU, where each day begins and ends.
    """
    if len(offsets) == 2:
        return mse(prediction, label), torch.isfinite(label).any()
    grid, observed = _grids(prediction - label, torch.isfinite(label), offsets)
    by_day = grid.square().sum(1) / observed.sum(1).clamp(min=1)  # [days]
    return _mean(by_day, observed.any(1))


def daily_ic(prediction: Tensor, label: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over days of the correlation of prediction and label, and the number of days for which it is defined.

    Args: as `daily_mse`. A day with fewer than two labels, or one that does not vary, has no correlation.
    """
    finite = torch.isfinite(label)
    (p, observed), (y, _) = (_grids(values.double(), finite, offsets) for values in (prediction, label))
    count = observed.sum(1, keepdim=True).clamp(min=1)
    varies = torch.ones(len(p), dtype=torch.bool, device=p.device)
    centred = []
    for grid in (p, y):
        # A constant day is told by its range: its computed spread may be a rounding error instead of zero.
        high, low = (torch.where(observed, grid, bound) for bound in (-torch.inf, torch.inf))
        varies &= high.amax(1) > low.amin(1)
        centred.append(torch.where(observed, grid - grid.sum(1, keepdim=True) / count, 0.0))
    p, y = centred
    spread = p.square().sum(1).sqrt() * y.square().sum(1).sqrt()
    return _mean((p * y).sum(1) / torch.where(varies, spread, 1.0), varies)


def _grids(values: Tensor, observed: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """[B] as a grid [days, most rows of a day], and which entries are observed; the others are zero."""
    lengths = offsets.diff().tolist()
    values = torch.where(observed, values, 0.0)
    return tuple(torch.nn.utils.rnn.pad_sequence(one.split(lengths), batch_first=True) for one in (values, observed))


def _mean(by_day: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    number = counts.sum()
    return torch.where(counts, by_day, 0.0).sum() / number.clamp(min=1), number
