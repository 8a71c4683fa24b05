"""GATs: attention between all stocks of a day over the state of each, with the constructor, the order of parameter creation and the
state_dict names of Qlib's `GATModel` (pytorch_gats and pytorch_gats_ts); its [N, N, 2H] tensor is an O(N log N) op here."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import nn as torch_nn

from .. import ops
from ._base_network import encode, make_base


class GATsNet(torch_nn.Module):
    """Qlib's `GATModel`.

    Args:
        d_feat: features a day, F; with base_model="MLP" all features of a stock.
        hidden_size, num_layers: of the base.
        dropout: between its layers, in training.
        base_model: "GRU" or "LSTM" over a stock's days, or "MLP" over tabular features.

    Shapes: x [N, F * T] (rows, feature after feature) or [N, T, F] (windows), or [N, F] for an MLP -> [N], of one stock too, where
    Qlib's becomes 0-d. All N are stocks of one day, unless `offsets` (int64 [days + 1], rising from 0 to N) says which rows make a day.

    Raises:
        ValueError: unknown base_model; x of another shape.
    """

    def __init__(self, d_feat: int = 6, hidden_size: int = 64, num_layers: int = 2, dropout: float = 0.0, base_model: str = "GRU") -> None:
        super().__init__()
        self.rnn = make_base("GATsNet", d_feat, hidden_size, num_layers, dropout, base_model)
        self.hidden_size = hidden_size
        self.d_feat = d_feat
        self.transformation = torch_nn.Linear(hidden_size, hidden_size)
        self.a = torch_nn.Parameter(torch.randn(hidden_size * 2, 1))
        self.fc = torch_nn.Linear(hidden_size, hidden_size)
        self.fc_out = torch_nn.Linear(hidden_size, 1)
        self.leaky_relu = torch_nn.LeakyReLU()

    def _scores(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(s, t), [N] each: stock i scores stock j leaky_relu(s_i + t_j). Linear in the state, so `a` goes through the layer."""
        a = self.a.view(2, self.hidden_size)
        t, s = F.linear(hidden, a @ self.transformation.weight, a @ self.transformation.bias).unbind(1)
        return s, t

    def forward(self, x: Tensor, offsets: Tensor | None = None) -> Tensor:
        hidden = encode("GATsNet", self.rnn, x, self.d_feat)  # [N, H]
        s, t = self._scores(hidden)
        slope = self.leaky_relu.negative_slope
        hidden = ops.complete_graph_attention(s, t, hidden, slope, offsets) + hidden
        return self.fc_out(self.leaky_relu(self.fc(hidden))).squeeze(1)

    @torch.no_grad()
    def attention(self, x: Tensor, stocks: Tensor, offsets: Tensor | None = None) -> Tensor:
        """What chosen stocks attend to: [R, N], row r the weights that stock stocks[r] gives to the stocks of its day, summing to one.

        Args:
            x, offsets: as in the call.
            stocks: int64 [R], row numbers of x.
        """
        s, t = self._scores(encode("GATsNet", self.rnn, x, self.d_feat))
        return ops.attention_rows(s, t, stocks, self.leaky_relu.negative_slope, offsets)
