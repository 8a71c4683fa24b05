"""The state-frequency-memory recurrence (Zhang, Aggarwal & Qi, KDD 2017) in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def hard_sigmoid(z: Tensor) -> Tensor:
    """torch's hardsigmoid; the gradient of that one takes 1/6 in float32 even for float64."""
    return (z / 6 + 0.5).clamp(0, 1)


def sfm(
    x: Tensor,
    weight_x: Tensor,
    weight_h: Tensor,
    bias: Tensor,
    weight_a: Tensor,
    bias_a: Tensor,
    waves: Tensor,
    hidden_mask: Tensor | None,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The last hidden state [B, H] from x [B, T, D]; of all steps the hidden states [B, T, H] and the opened gates [B, T, 4H + F], both
    empty unless training."""
    batch, steps, _ = x.shape
    units, frequencies = bias_a.shape[0], weight_a.shape[0]
    from_x = x @ weight_x + bias  # [B, T, 4H + F]
    h = x.new_zeros(batch, units)
    real = imaginary = x.new_zeros(batch, units, frequencies)  # of the memory S
    hidden, opened = [], []
    for step in range(steps):
        entering = h if hidden_mask is None else h * hidden_mask
        gates = from_x[:, step] + entering @ weight_h
        linear = gates.split([units, units, units, units, frequencies], dim=1)
        i, state, cell, o, frequency = (torch.tanh(z) if gate == 2 else hard_sigmoid(z) for gate, z in enumerate(linear))
        keep = state[:, :, None] * frequency[:, None, :]  # [B, H, F]
        new = (i * cell)[:, :, None]  # [B, H, 1]
        cosine, sine = waves[step]  # [F] each
        real = keep * real + new * cosine
        imaginary = keep * imaginary + new * sine
        amplitude = (real.square() + imaginary.square()) @ weight_a  # [B, H]
        h = o * torch.tanh(amplitude + bias_a)
        if training:
            hidden.append(h)
            opened.append(torch.cat([i, state, cell, o, frequency], 1))
    if not training:
        return h, h.new_empty(0, steps, units), h.new_empty(0, steps, 4 * units + frequencies)
    return h, torch.stack(hidden, 1), torch.stack(opened, 1)
