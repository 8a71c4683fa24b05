"""Stacks of GRU (Cho et al. 2014, in the form of torch.nn.GRU) and LSTM cells (Hochreiter & Schmidhuber 1997; Gers et al. 2000)
in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _random

# Gates of a cell in the order of torch's parameters: GRU reset, update, new; LSTM input, forget, cell, output.
GATES = {"gru": 3, "lstm": 4}


def layers_of(weights: list[Tensor], biases: bool) -> list[list[Tensor | None]]:
    """[weight_ih [GH, I], weight_hh [GH, H], bias_ih [GH], bias_hh [GH]] of each layer, from torch's flat list."""
    per_layer = 4 if biases else 2
    layers = [weights[i : i + per_layer] for i in range(0, len(weights), per_layer)]
    return [list(layer) if biases else [*layer, None, None] for layer in layers]


def gru_cell(x_part: Tensor, h_part: Tensor, h: Tensor) -> Tensor:
    """h' [B, H] from W_ih x + b_ih and W_hh h + b_hh, [B, 3H] each, and h [B, H]."""
    xr, xz, xn = x_part.chunk(3, 1)
    hr, hz, hn = h_part.chunk(3, 1)
    r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
    n = torch.tanh(xn + r * hn)
    return n + z * (h - n)


def lstm_cell(x_part: Tensor, h_part: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """(h', c') [B, H] from W_ih x + b_ih and W_hh h + b_hh, [B, 4H] each, and c [B, H]."""
    i, f, g, o = (x_part + h_part).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def recurrent(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[Tensor],
    seed: Tensor | None,
    cell: str,
    biases: bool,
    batch_first: bool,
    sequence: bool,
    dropout: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(output, h_n, c_n, and two empty tensors where the kernels put what they keep for the backward pass)."""
    layers = layers_of(weights, biases)
    steps = x.transpose(0, 1) if batch_first else x  # [T, B, I]
    batch, hidden = steps.shape[1], weights[1].shape[1]
    zeros = x.new_zeros(batch, hidden)
    h_n, c_n = [], []
    for number, (w_ih, w_hh, b_ih, b_hh) in enumerate(layers):
        h = zeros if h0 is None else h0[number]
        c = zeros if c0 is None else c0[number]
        x_parts = torch.nn.functional.linear(steps, w_ih, b_ih)  # [T, B, GH]
        outputs = []
        for x_part in x_parts:
            h_part = torch.nn.functional.linear(h, w_hh, b_hh)  # [B, GH]
            if cell == "gru":
                h = gru_cell(x_part, h_part, h)
            else:
                h, c = lstm_cell(x_part, h_part, c)
            outputs.append(h)
        steps = torch.stack(outputs)  # [T, B, H]
        h_n.append(h)
        c_n.append(c)
        if seed is not None and number + 1 < len(layers):
            factors = _random.dropout_factors(seed, number, (len(steps) * batch, hidden), dropout, x)
            steps = steps * factors.view_as(steps)
    output = steps.transpose(0, 1) if batch_first else steps
    if not sequence:
        output = output[:, :0] if batch_first else output[:0]
    nothing = x.new_empty(0)
    return output.contiguous(), torch.stack(h_n), torch.stack(c_n) if cell == "lstm" else nothing, nothing, nothing
