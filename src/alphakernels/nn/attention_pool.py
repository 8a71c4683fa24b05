"""ALSTM's attention over time (Qin et al. 2017, arXiv:1704.02971, in Qlib's form)."""

from __future__ import annotations

from torch import Tensor, nn

from .. import ops


class AttentionPool(nn.Sequential):
    """Pools a recurrent layer's output over time by attention; takes the place of the `att_net` in Qlib's `ALSTMModel`, with its
    parameter names, and does what follows it there.

    Args:
        hidden_size: H, columns of the input.
        dropout: probability in front of the tanh, in training.

    Shapes: h [B, T, H] -> [B, 2H]: the last state, then the sum over time of the states weighted by
    softmax_t(v · tanh(dropout(W h_t + b))), W [H // 2, H]. With `return_weights` also the weights [B, T].
    """

    def __init__(self, hidden_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.add_module("att_fc_in", nn.Linear(hidden_size, hidden_size // 2))
        self.add_module("att_dropout", nn.Dropout(dropout))
        self.add_module("att_act", nn.Tanh())
        self.add_module("att_fc_out", nn.Linear(hidden_size // 2, 1, bias=False))
        self.add_module("att_softmax", nn.Softmax(dim=1))

    def forward(self, h: Tensor, return_weights: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        dropout = self.att_dropout.p if self.training else 0.0
        fc, score = self.att_fc_in, self.att_fc_out.weight[0]
        return ops.attention_pool(h, fc.weight, fc.bias, score, dropout=dropout, return_weights=return_weights)
