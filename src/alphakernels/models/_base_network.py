"""What GATs and HIST stand on: the last state of a recurrent stack over each stock's days, or an MLP for tabular features."""

from __future__ import annotations

from torch import Tensor
from torch import nn as torch_nn

from .recurrent import RNN_TYPES, windows

BASE_MODELS = (*RNN_TYPES, "MLP")


def make_base(name: str, d_feat: int, hidden_size: int, num_layers: int, dropout: float, base_model: str) -> torch_nn.Module:
    """The GRU or LSTM that Qlib's networks create first, or an MLP of `num_layers` hidden layers.

    Raises:
        ValueError: unknown base_model.
    """
    if base_model in RNN_TYPES:
        return RNN_TYPES[base_model](d_feat, hidden_size, num_layers, batch_first=True, dropout=dropout)
    if base_model != "MLP":
        raise ValueError(f"{name}: base_model must be one of {', '.join(BASE_MODELS)}, got {base_model!r}")
    layers: list[torch_nn.Module] = []
    for i in range(num_layers):
        layers += [torch_nn.Linear(hidden_size if i else d_feat, hidden_size), torch_nn.LeakyReLU(), torch_nn.Dropout(dropout)]
    return torch_nn.Sequential(*layers[:-1])  # as in a recurrent stack, dropout lies between layers


def encode(name: str, base: torch_nn.Module, x: Tensor, d_feat: int) -> Tensor:
    """[N, H] of rows [N, F * T] or windows [N, T, F]; an MLP takes features [N, F].

    Raises:
        ValueError: x of another shape.
    """
    if isinstance(base, torch_nn.Sequential):
        if x.dim() != 2 or x.shape[1] != d_feat:
            raise ValueError(f"{name}: with base_model='MLP' x must be of shape [N, {d_feat}], got {list(x.shape)}")
        return base(x)
    return base.last(windows(name, x, d_feat))
