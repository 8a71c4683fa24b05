"""LocalFormer's encoder layer (Qlib's LocalformerEncoder around torch.nn.TransformerEncoderLayer; Vaswani et al. 2017,
arXiv:1706.03762) in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _random

# The parameters in the order in which the op takes them.
NAMES = (
    "in_proj_weight",
    "in_proj_bias",
    "out_proj_weight",
    "out_proj_bias",
    "linear1_weight",
    "linear1_bias",
    "linear2_weight",
    "linear2_bias",
    "norm1_weight",
    "norm1_bias",
    "norm2_weight",
    "norm2_bias",
    "conv_weight",
    "conv_bias",
)


def dropped(x: Tensor, seed: Tensor | None, stream: int, p: float) -> Tensor:
    """Inverted dropout of x [..., columns], by rows of one stream of the generator."""
    if seed is None:
        return x
    rows = x.reshape(-1, x.shape[-1])
    return x * _random.dropout_factors(seed, stream, tuple(rows.shape), p, x).view_as(x)


def attention_weights(x: Tensor, in_weight: Tensor, in_bias: Tensor, mask: Tensor | None, heads: int) -> tuple[Tensor, Tensor]:
    """softmax(q k^T / sqrt(d / heads) + mask) [B, heads, T, T], and v [B, heads, T, d / heads], of x [B, T, d]."""
    batch, steps, width = x.shape
    qkv = F.linear(x, in_weight, in_bias).view(batch, steps, 3, heads, width // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, T, d / heads] each
    scores = q @ k.transpose(-1, -2) * (width // heads) ** -0.5
    return torch.softmax(scores if mask is None else scores + mask, -1), v


def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """conv(x) over time, [B, T, d], three taps, zeros beyond the ends."""
    return F.conv1d(x.transpose(1, 2), weight, bias, padding=1).transpose(1, 2)


def local_encoder_layer(
    x: Tensor,
    weights: list[Tensor],
    mask: Tensor | None,
    seed: Tensor | None,
    heads: int,
    dropout: float,
    eps: float,
    want_u: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y and u [B, T, d] (empty where not wanted), and an empty tensor where the kernels put what they keep for the backward pass."""
    w = dict(zip(NAMES, weights, strict=False))
    width = x.shape[2]
    u = s = None
    if "conv_weight" in w:
        u = convolution(x, w["conv_weight"], w["conv_bias"])
        s = x + u
    else:
        s = x
    attention, v = attention_weights(s, w["in_proj_weight"], w["in_proj_bias"], mask, heads)
    mixed = (dropped(attention, seed, 0, dropout) @ v).transpose(1, 2).reshape(x.shape)
    attended = F.linear(mixed, w["out_proj_weight"], w["out_proj_bias"])
    a = F.layer_norm(s + dropped(attended, seed, 1, dropout), (width,), w["norm1_weight"], w["norm1_bias"], eps)
    hidden = dropped(F.linear(a, w["linear1_weight"], w["linear1_bias"]).relu(), seed, 2, dropout)
    fed = F.linear(hidden, w["linear2_weight"], w["linear2_bias"])
    y = F.layer_norm(a + dropped(fed, seed, 3, dropout), (width,), w["norm2_weight"], w["norm2_bias"], eps)
    nothing = x.new_empty(0)
    return y, u if u is not None and want_u else nothing, nothing
