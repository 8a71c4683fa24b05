"""LocalFormer and Transformer networks with the constructors, the order of parameter creation and the state_dict names of Qlib's inner
`Transformer` modules (pytorch_localformer, pytorch_transformer and their `_ts` twins): the same seed gives bitwise the same weights, and
checkpoints load both ways.

One network serves both of Qlib's styles: rows [N, F * T], feature after feature, each over all its days (Alpha360), or windows
[N, T, F] of a time-series dataset. The output is [N], of one row too, where Qlib's becomes 0-d.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch import nn as torch_nn

from .. import nn
from .recurrent import windows

MAX_STEPS = 1000  # rows of the sinusoidal table


class PositionalEncoding(torch_nn.Module):
    """Adds the sinusoidal table of Vaswani et al. 2017: x [N, T, d] -> [N, T, d]."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        position = torch.arange(0, MAX_STEPS, dtype=torch.float).unsqueeze(1)
        frequency = torch.exp(torch.arange(0, d_model, 2).float() * (-math.log(10000.0) / d_model))
        pe = torch.zeros(MAX_STEPS, d_model)
        pe[:, 0::2] = torch.sin(position * frequency)
        pe[:, 1::2] = torch.cos(position * frequency)[:, : d_model // 2]
        self.register_buffer("pe", pe.unsqueeze(1))  # [MAX_STEPS, 1, d], as Qlib's

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > MAX_STEPS:
            raise ValueError(f"PositionalEncoding: x must be of at most {MAX_STEPS} time steps, got {x.shape[1]}")
        return x + self.pe[: x.shape[1], 0]


class _Encoded(torch_nn.Module):
    """What the two have in common: embedding, positions, a stack of layers."""

    def _embed(self, x: Tensor) -> Tensor:
        """[N, T, d_model] of either style of x."""
        return self.pos_encoder(self.feature_layer(windows(type(self).__name__, x, self.d_feat)))

    def _layers(self) -> torch_nn.ModuleList:
        return self.transformer_encoder.layers

    @property
    def memory(self) -> str:
        """ "auto", or "low": the layers keep nothing but their inputs for the backward pass. Can be set."""
        return self._layers()[0].memory

    @memory.setter
    def memory(self, value: str) -> None:
        for layer in self._layers():
            layer.memory = value


class LocalformerNet(_Encoded):
    """Qlib's LocalFormer: encoder layers with a convolution over time before each, and a GRU on top.

    Args:
        d_feat: features a day, F.
        d_model: width of the encoder; even, divisible by `nhead`.
        nhead: heads of the attention.
        num_layers: of the encoder and of the GRU.
        dropout: in the encoder's layers and between the GRU's, in training.
        device: where the parameters go once drawn, or None.
        dim_feedforward: hidden width of the layers' FFN.
        memory: "low" keeps nothing but the layers' inputs for the backward pass.

    Shapes: x [N, F * T] or [N, T, F] -> [N].

    Raises:
        ValueError: x of another shape, or of more than 1000 time steps.
    """

    def __init__(
        self,
        d_feat: int = 6,
        d_model: int = 8,
        nhead: int = 4,
        num_layers: int = 2,
        dropout: float = 0.5,
        device: torch.device | str | None = None,
        *,
        dim_feedforward: int = 2048,
        memory: str = "auto",
    ) -> None:
        super().__init__()
        self.rnn = nn.GRU(d_model, d_model, num_layers, batch_first=True, dropout=dropout)
        self.feature_layer = nn.Linear(d_feat, d_model)
        self.pos_encoder = PositionalEncoding(d_model)
        # As in Qlib, the layer that the others are copied from stays in the state_dict.
        self.encoder_layer = nn.TransformerEncoderLayer(d_model, nhead, dim_feedforward, dropout, batch_first=True, memory=memory)
        self.transformer_encoder = nn.LocalformerEncoder(self.encoder_layer, num_layers, d_model)
        self.decoder_layer = nn.Linear(d_model, 1)
        self.d_feat = d_feat
        self.to(device)

    def forward(self, x: Tensor) -> Tensor:
        last = self.rnn.last(self.transformer_encoder(self._embed(x)))  # [N, d]
        return self.decoder_layer(last).squeeze(1)

    def attention(self, x: Tensor, layer: int = -1) -> Tensor:
        """The heads' attention weights [N, heads, T, T] of one layer, computed for this call alone."""
        return self.transformer_encoder.attention(self._embed(x), layer)


class TransformerNet(_Encoded):
    """Qlib's Transformer: torch's encoder layers, and a linear layer on the last step.

    Args: those of `LocalformerNet`; there is no GRU.

    Shapes: x [N, F * T] or [N, T, F] -> [N].

    Raises:
        ValueError: x of another shape, or of more than 1000 time steps.
    """

    def __init__(
        self,
        d_feat: int = 6,
        d_model: int = 8,
        nhead: int = 4,
        num_layers: int = 2,
        dropout: float = 0.5,
        device: torch.device | str | None = None,
        *,
        dim_feedforward: int = 2048,
        memory: str = "auto",
    ) -> None:
        super().__init__()
        self.feature_layer = nn.Linear(d_feat, d_model)
        self.pos_encoder = PositionalEncoding(d_model)
        self.encoder_layer = nn.TransformerEncoderLayer(d_model, nhead, dim_feedforward, dropout, batch_first=True, memory=memory)
        self.transformer_encoder = torch_nn.TransformerEncoder(self.encoder_layer, num_layers, enable_nested_tensor=False)
        self.decoder_layer = nn.Linear(d_model, 1)
        self.d_feat = d_feat
        self.to(device)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder_layer(self.transformer_encoder(self._embed(x))[:, -1]).squeeze(1)

    def attention(self, x: Tensor, layer: int = -1) -> Tensor:
        """The heads' attention weights [N, heads, T, T] of one layer, computed for this call alone."""
        layers = self._layers()
        number = range(len(layers))[layer]
        hidden = self._embed(x)
        for before in layers[:number]:
            hidden = before(hidden)
        return layers[number].attention(hidden)
