"""GRU, LSTM and ALSTM networks with the constructors, the order of parameter creation and the state_dict names of Qlib's
`GRUModel`, `LSTMModel` and `ALSTMModel` modules (pytorch_gru, pytorch_lstm, pytorch_alstm and their `_ts` twins): the same seed gives
bitwise the same weights, and checkpoints load both ways.

One network serves both of Qlib's styles: rows [N, F * T], feature after feature, each over all its days (Alpha360), or windows
[N, T, F] of a time-series dataset. The output is [N], of one row too, where Qlib's becomes 0-d.
"""

from __future__ import annotations

from torch import Tensor
from torch import nn as torch_nn

from .. import nn

RNN_TYPES = {"GRU": nn.GRU, "LSTM": nn.LSTM}


def windows(name: str, x: Tensor, d_feat: int) -> Tensor:
    """[N, T, F] of either style, as a view.

    Raises:
        ValueError: x is neither [N, F * T] nor [N, T, F].
    """
    if x.dim() == 3 and x.shape[2] == d_feat:
        return x
    if x.dim() == 2 and x.shape[1] > 0 and x.shape[1] % d_feat == 0:
        return x.reshape(x.shape[0], d_feat, x.shape[1] // d_feat).transpose(1, 2)
    raise ValueError(f"{name}: x must be of shape [N, {d_feat} * T] (rows) or [N, T, {d_feat}] (windows), got {list(x.shape)}")


class _LastState(torch_nn.Module):
    """A recurrent stack and a linear layer on its last state."""

    def __init__(self, rnn_type: str, d_feat: int, hidden_size: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        self.rnn = RNN_TYPES[rnn_type](d_feat, hidden_size, num_layers, batch_first=True, dropout=dropout)
        self.fc_out = nn.Linear(hidden_size, 1)
        self.d_feat = d_feat

    def forward(self, x: Tensor) -> Tensor:
        last = self.rnn.last(windows(type(self).__name__, x, self.d_feat))  # [N, H]
        return self.fc_out(last).squeeze(1)


class GRUNet(_LastState):
    """Qlib's `GRUModel`.

    Args:
        d_feat: features a day, F.
        hidden_size, num_layers: of the GRU.
        dropout: between its layers, in training.

    Shapes: x [N, F * T] or [N, T, F] -> [N].

    Raises:
        ValueError: x of another shape.
    """

    def __init__(self, d_feat: int = 6, hidden_size: int = 64, num_layers: int = 2, dropout: float = 0.0) -> None:
        super().__init__("GRU", d_feat, hidden_size, num_layers, dropout)


class LSTMNet(_LastState):
    """Qlib's `LSTMModel`.

    Args:
        d_feat: features a day, F.
        hidden_size, num_layers: of the LSTM.
        dropout: between its layers, in training.

    Shapes: x [N, F * T] or [N, T, F] -> [N].

    Raises:
        ValueError: x of another shape.
    """

    def __init__(self, d_feat: int = 6, hidden_size: int = 64, num_layers: int = 2, dropout: float = 0.0) -> None:
        super().__init__("LSTM", d_feat, hidden_size, num_layers, dropout)


class ALSTMNet(torch_nn.Module):
    """Qlib's `ALSTMModel`: a GRU or LSTM with attention over time (Qin et al. 2017, arXiv:1704.02971).

    Args:
        d_feat: features a day, F.
        hidden_size, num_layers: of the recurrent stack.
        dropout: between its layers and in the attention, in training.
        rnn_type: "GRU" or "LSTM", in any case of letters.

    Shapes: x [N, F * T] or [N, T, F] -> [N]; with `return_weights` also the attention weights [N, T].

    Raises:
        ValueError: unknown rnn_type; x of another shape.
    """

    def __init__(self, d_feat: int = 6, hidden_size: int = 64, num_layers: int = 2, dropout: float = 0.0, rnn_type: str = "GRU") -> None:
        super().__init__()
        if rnn_type.upper() not in RNN_TYPES:
            raise ValueError(f"ALSTMNet: rnn_type must be GRU or LSTM, got {rnn_type!r}")
        self.hid_size = hidden_size
        self.input_size = d_feat
        self.dropout = dropout
        self.rnn_type = rnn_type
        self.rnn_layer = num_layers
        self.net = nn.LinearTanh(d_feat, hidden_size)
        self.rnn = RNN_TYPES[rnn_type.upper()](hidden_size, hidden_size, num_layers, batch_first=True, dropout=dropout)
        self.fc_out = nn.Linear(hidden_size * 2, 1)
        self.att_net = nn.AttentionPool(hidden_size, dropout)

    def forward(self, x: Tensor, return_weights: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        hidden, _ = self.rnn(self.net(windows("ALSTMNet", x, self.input_size)))  # [N, T, H]
        pooled, weights = self.att_net(hidden, return_weights=True) if return_weights else (self.att_net(hidden), None)
        out = self.fc_out(pooled).squeeze(1)
        return (out, weights) if return_weights else out
