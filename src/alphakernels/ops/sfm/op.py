"""sfm: the state-frequency-memory recurrence over all steps in one kernel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _backend, _checks
from .._library import Formula, define
from ..ghost_batch_norm.op import statistics_dtype
from . import reference

_TRITON = "alphakernels.ops.sfm.triton"


def _fake(x, weight_x, weight_h, bias, weight_a, bias_a, waves, hidden_mask, training):
    batch, steps, units = x.shape[0], x.shape[1], bias_a.shape[0]
    kept, dtype = batch if training else 0, statistics_dtype(x)
    # Kept for the backward pass: the hidden state after each step, and the opened gates of each.
    hidden, gates = x.new_empty(kept, steps, units, dtype=dtype), x.new_empty(kept, steps, bias.shape[0], dtype=dtype)
    return x.new_empty(batch, units), hidden, gates


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.training = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx, ops, grad: Tensor | None, *_):
    if not ctx.training:
        raise RuntimeError("sfm: training must be True where a gradient is asked for, got False")
    if grad is None:
        return (None,) * 9
    dx, *parameters = ops.sfm_backward(grad, *ctx.saved_tensors, ctx.needs_input_grad[0])
    return dx if ctx.needs_input_grad[0] else None, *parameters, None, None, None


SFM = define(
    "sfm",
    "(Tensor x, Tensor weight_x, Tensor weight_h, Tensor bias, Tensor weight_a, Tensor bias_a, Tensor waves, Tensor? hidden_mask, "
    "bool training) -> (Tensor, Tensor, Tensor)",
    fake=_fake,
    formula=Formula(_setup, _backward),
    triton=_TRITON,
)


def _fake_backward(grad, x, weight_x, weight_h, bias, weight_a, bias_a, waves, hidden_mask, hidden, gates, x_gradient):
    batch, steps, features = x.shape
    dx = x.new_empty(batch if x_gradient else 0, steps, features)
    return dx, *(x.new_empty(t.shape) for t in (weight_x, weight_h, bias, weight_a, bias_a))


define(
    "sfm_backward",
    "(Tensor grad, Tensor x, Tensor weight_x, Tensor weight_h, Tensor bias, Tensor weight_a, Tensor bias_a, Tensor waves, "
    "Tensor? hidden_mask, Tensor hidden, Tensor gates, bool x_gradient) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_fake_backward,
    triton=_TRITON,
)


def fourier_waves(
    steps: int,
    frequencies: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    angle_dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Cosine and sine of the angles `2 pi t k / F` of steps t = 1..T and frequencies k = 0..F-1.

    Args:
        steps, frequencies: T and F.
        dtype, device: of the result.
        angle_dtype: the precision `2 pi t` is rounded to; Qlib's is float32, an error of up to 2e-5 at T = 60.

    Returns:
        [T, 2, F].
    """
    # Filled there: a number sent from the host would wait for the device, which a CUDA graph cannot hold.
    turns = torch.full((), 2 * math.pi, dtype=angle_dtype, device=device) * torch.arange(1, steps + 1, device=device)  # [T]
    share = torch.arange(frequencies, dtype=torch.float64, device=device) / frequencies  # [F]
    angles = turns.double()[:, None] * share  # [T, F]
    return torch.stack([angles.cos(), angles.sin()], 1).to(dtype or torch.get_default_dtype())


def sfm(
    x: Tensor,
    weight_x: Tensor,
    weight_h: Tensor,
    bias: Tensor,
    weight_a: Tensor,
    bias_a: Tensor,
    *,
    waves: Tensor | None = None,
    hidden_mask: Tensor | None = None,
) -> Tensor:
    """State-frequency memory: a recurrence whose memory S is split by frequency, `S_t = (s f^T) S_{t-1} + c e^{i w t}`.

    With the columns of the weights cut into [i: H | s: H | c: H | o: H | f: F], the linear parts `x_t weight_x + h_{t-1} weight_h +
    bias`, hard sigmoids for i, s, o, f and tanh for c, a step is `S = (s f^T) S + (i c) e^{i w t}`, `h = o tanh(|S|^2 weight_a +
    bias_a)`; S [H, F] is complex, h and S start at zero.

    Args:
        x: [B, T, D] floating point, T >= 1, in any layout.
        weight_x, weight_h, bias: [D, 4H + F], [H, 4H + F], [4H + F].
        weight_a, bias_a: [F] and [H], of the amplitudes.
        waves: [T, 2, F], cosine and sine of each frequency at each step, constants; None for `fourier_waves(T, F)`.
        hidden_mask: [B, H] or None, a constant factor on h_{t-1} in the linear parts (dropout that is the same at every step).

    Returns:
        h_T [B, H] in x's dtype (float32 under autocast).

    Raises:
        TypeError: a tensor that is not floating point, or of another dtype than x.
        ValueError: a tensor of another shape or device; no steps; waves or hidden_mask that require a gradient.

    For the backward pass the hidden states [B, T, H] and the gates [B, T, 4H + F] are kept, nothing of size H x F.

    Source: Zhang, Aggarwal & Qi, "Stock price prediction via discovering multi-frequency trading patterns", KDD 2017; Qlib's SFM_Model.
    """
    op = "sfm"
    _checks.require_float(op, "x", x)
    _checks.require_rank(op, "x", x, 3, "[B, T, D]")
    _checks.require(x.shape[1] > 0, op, "x", "of at least one step [B, T, D]", list(x.shape))
    for name, t, rank, shape in (("weight_a", weight_a, 1, "[F]"), ("bias_a", bias_a, 1, "[H]")):
        _checks.require_float(op, name, t)
        _checks.require_rank(op, name, t, rank, shape)
    tensors = _checks.autocast(x, weight_x, weight_h, bias, weight_a, bias_a, waves, hidden_mask)
    x, weight_x, weight_h, bias, weight_a, bias_a, waves, hidden_mask = tensors
    (batch, steps, features), units, frequencies = x.shape, bias_a.shape[0], weight_a.shape[0]
    width = 4 * units + frequencies
    if waves is None:
        waves = fourier_waves(steps, frequencies, dtype=x.dtype, device=x.device)
    for name, t, shape in (
        ("weight_x", weight_x, (features, width)),
        ("weight_h", weight_h, (units, width)),
        ("bias", bias, (width,)),
        ("weight_a", weight_a, (frequencies,)),
        ("bias_a", bias_a, (units,)),
        ("waves", waves, (steps, 2, frequencies)),
        ("hidden_mask", hidden_mask, (batch, units)),
    ):
        _checks.require_like(op, name, t, x, shape)
    for name, t in (("waves", waves), ("hidden_mask", hidden_mask)):
        _checks.require(t is None or not t.requires_grad, op, name, "a constant", "a tensor that requires a gradient")
    parameters = (weight_x, weight_h, bias, weight_a, bias_a)
    training = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *parameters))
    return _backend.run(SFM, reference.sfm, x, x, *parameters, waves, hidden_mask, training)[0]
