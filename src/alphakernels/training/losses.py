"""Losses that skip what was not observed: a missing label (NaN) has no say, and needs no synchronising index."""

from __future__ import annotations

import torch
from torch import Tensor


def mse(prediction: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error over the rows whose label is not NaN.

    Args:
        prediction: [...] floating point.
        label: the same shape; NaN means not observed.
        weight: the same shape: factors of the squared errors. The sum is still divided by the number of rows and not by
            that of the weights, as in Qlib.

    Returns:
        0-d tensor. Without any label it is 0, still part of the graph: its gradient is zero everywhere.
        An infinite label is not skipped, because it is a fault of the data and not a missing value.

    Raises:
        ValueError: the shapes differ (broadcasting [B] against [B, 1] would silently compare all pairs).
    """
    if prediction.shape != label.shape:
        raise ValueError(
            f"mse: label must have the prediction's shape {tuple(prediction.shape)}, got {tuple(label.shape)}"
        )
    observed = ~torch.isnan(label)
    # `where` before the square: after it, the gradient of the skipped rows would be 0 * NaN.
    squared = torch.where(observed, prediction - label, 0.0).square()
    if weight is not None:
        squared = squared * torch.where(observed, weight, 0.0)
    return squared.sum() / observed.sum().clamp(min=1)


def binary(prediction: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of logits over the rows whose label is not NaN.

    Args: as `mse`, with labels in [0, 1].
    """
    if prediction.shape != label.shape:
        raise ValueError(f"binary: label must have the prediction's shape {tuple(prediction.shape)}, got {tuple(label.shape)}")
    observed = ~torch.isnan(label)
    each = torch.nn.functional.binary_cross_entropy_with_logits(prediction, torch.where(observed, label, 0.0), reduction="none")
    if weight is not None:
        each = each * weight
    return torch.where(observed, each, 0.0).sum() / observed.sum().clamp(min=1)
