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
) -> tuple[Tensor, Tensor]:
    """The last hidden state [B, H], and of all steps [B, T, H] (empty unless training) from x [B, T, D]."""
    batch, steps, _ = x.shape
    units, frequencies = bias_a.shape[0], weight_a.shape[0]
    from_x = x @ weight_x + bias  # [B, T, 4H + F]
    h = x.new_zeros(batch, units)
    real = imaginary = x.new_zeros(batch, units, frequencies)  # of the memory S
    hidden = []
    for step in range(steps):
        entering = h if hidden_mask is None else h * hidden_mask
        gates = from_x[:, step] + entering @ weight_h
        i, state, cell, o, frequency = gates.split([units, units, units, units, frequencies], dim=1)
        keep = hard_sigmoid(state)[:, :, None] * hard_sigmoid(frequency)[:, None, :]  # [B, H, F]
        new = (hard_sigmoid(i) * torch.tanh(cell))[:, :, None]  # [B, H, 1]
        cosine, sine = waves[step]  # [F] each
        real = keep * real + new * cosine
        imaginary = keep * imaginary + new * sine
        amplitude = (real.square() + imaginary.square()) @ weight_a  # [B, H]
        h = hard_sigmoid(o) * torch.tanh(amplitude + bias_a)
        hidden.append(h)
    return h, torch.stack(hidden, 1) if training else h.new_empty(0, steps, units)
