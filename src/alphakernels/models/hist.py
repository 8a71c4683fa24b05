"""HIST (Xu et al. 2021, arXiv:2110.13716): what a stock shares with predefined concepts, with hidden ones, and what is its own; with the
constructor, the order of parameter creation and the state_dict names of Qlib's `HISTModel`. Runs on any device; Qlib's needs a GPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn as torch_nn

from .. import ops
from ..ops._days import check_offsets, on_device
from ._base_network import encode, make_base

# In the order in which Qlib creates them.
_LAYERS = (
    "fc_es", "fc_is", "fc_es_middle", "fc_is_middle", "fc_es_fore", "fc_is_fore", "fc_indi_fore", "fc_es_back", "fc_is_back", "fc_indi",
)  # fmt: skip
_HEADS = ("fc_out_es", "fc_out_is", "fc_out_indi", "fc_out")


class HISTNet(torch_nn.Module):
    """Qlib's `HISTModel`.

    Args:
        d_feat: features a day, F; with base_model="MLP" all features of a stock.
        hidden_size, num_layers: of the base.
        dropout: between its layers, in training.
        base_model: "GRU" or "LSTM" over a stock's days, or "MLP" over tabular features.

    Shapes: x [N, F * T] (rows), [N, T, F] (windows) or [N, F] (MLP); concept_matrix [N, K], one where stock i belongs to concept k (or
    the weight of its membership) -> [N], of one stock too. A stock without concept and a concept without stock are allowed, K = 0
    included. All N are stocks of one day, unless `offsets` (int64 [days + 1], rising from 0 to N; best on the CPU) says which rows make a
    day. With `stocks` (int64 [N]) stock i has the row stocks[i] of concept_matrix, which then has any number of rows.

    Raises:
        ValueError: unknown base_model; x or concept_matrix of another shape.
    """

    def __init__(self, d_feat: int = 6, hidden_size: int = 64, num_layers: int = 2, dropout: float = 0.0, base_model: str = "GRU") -> None:
        super().__init__()
        self.d_feat = d_feat
        self.hidden_size = hidden_size
        self.rnn = make_base("HISTNet", d_feat, hidden_size, num_layers, dropout, base_model)
        for name in _LAYERS:
            layer = torch_nn.Linear(hidden_size, hidden_size)
            torch_nn.init.xavier_uniform_(layer.weight)
            setattr(self, name, layer)
        self.leaky_relu = torch_nn.LeakyReLU()
        for name in _HEADS:
            setattr(self, name, torch_nn.Linear(hidden_size, 1))

    def forward(self, x: Tensor, concept_matrix: Tensor, offsets: Tensor | None = None, stocks: Tensor | None = None) -> Tensor:
        if concept_matrix.dim() != 2 or (stocks is None and len(concept_matrix) != len(x)):
            raise ValueError(
                f"HISTNet: concept_matrix must be of shape [{len(x) if stocks is None else 'rows'}, K], got {list(concept_matrix.shape)}"
            )
        check_offsets("HISTNet", offsets, len(x))
        hidden = encode("HISTNet", self.rnn, x, self.d_feat)  # [N, H]

        concept_offsets = None
        if offsets is not None:
            concept_offsets = torch.arange(len(offsets), device=x.device) * concept_matrix.shape[1]
            offsets = on_device(offsets, x.device)  # once for the five calls
        concepts = ops.predefined_concepts(hidden, concept_matrix, offsets, stocks)  # [days * K, H]
        shared = self.fc_es(ops.concept_attention(hidden, concepts, offsets, concept_offsets))
        without = hidden - self.fc_es_back(shared)
        output = self.leaky_relu(self.fc_es_fore(shared))

        shared = self.fc_is(ops.concept_attention(without, ops.hidden_concepts(without, offsets), offsets, offsets))
        output = output + self.leaky_relu(self.fc_is_fore(shared))

        own = without - self.fc_is_back(shared)
        output = output + self.leaky_relu(self.fc_indi(own))
        return self.fc_out(output).squeeze(1)
