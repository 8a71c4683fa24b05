"""ALSTM's attention on the GPU: a program takes one row of the batch, its time steps block by block under an online softmax, forward
and backward. Dropout draws from Triton's Philox, which is the generator of `ops/_random.py`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ghost_batch_norm.triton import dense

STEPS = 16  # time steps of a block
COLUMNS = 32  # hidden units that a product takes at a time


@triton.jit
def _tanh(x):
    e = tl.exp(-2.0 * tl.abs(x))
    t = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -t, t)


@triton.jit
def _activations(h, weight, bias, seed, keep_scale, threshold, row, t, steps, hidden, attention, BIAS: tl.constexpr,
                 DROPOUT: tl.constexpr, STEPS: tl.constexpr, COLUMNS: tl.constexpr, ATTENTION: tl.constexpr):  # fmt: skip
    """tanh(dropout(W h_t + b)) [STEPS, ATTENTION] in float32, and the dropout's factors."""
    time = t + tl.arange(0, STEPS)
    unit = tl.arange(0, ATTENTION)
    u = tl.zeros([STEPS, ATTENTION], tl.float32)
    for j in range(0, hidden, COLUMNS):
        column = j + tl.arange(0, COLUMNS)
        there = (time < steps)[:, None] & (column < hidden)[None, :]
        x = tl.load(h + (row * steps + time)[:, None] * hidden + column[None, :], there, 0.0)
        w = tl.load(weight + unit[None, :] * hidden + column[:, None], (unit < attention)[None, :] & (column < hidden)[:, None], 0.0)
        u = tl.dot(x, w, u, input_precision="ieee")
    if BIAS:
        u += tl.load(bias + unit, unit < attention, 0.0).to(tl.float32)[None, :]
    factor = tl.full([STEPS, ATTENTION], 1.0, tl.float32)
    if DROPOUT:
        counter = (row * steps + time)[:, None] * ((attention + 3) // 4) + (unit // 4)[None, :]
        a, b, c, d = tl.randint4x(seed, counter)
        word = (unit % 4)[None, :]
        bits = tl.where(word == 0, a, tl.where(word == 1, b, tl.where(word == 2, c, d)))
        kept = bits.to(tl.uint32, bitcast=True).to(tl.int64) >= threshold
        factor = tl.where(kept, keep_scale, 0.0)
    return _tanh(u * factor), factor


@triton.jit
def _forward(h, weight, bias, score, out, weights, seed, keep_scale, threshold, steps, hidden, attention, BIAS: tl.constexpr,
             DROPOUT: tl.constexpr, STEPS: tl.constexpr, COLUMNS: tl.constexpr, ATTENTION: tl.constexpr,
             HIDDEN: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    if DROPOUT:
        seed = tl.load(seed)  # once: in the loops it would cost registers
    unit = tl.arange(0, ATTENTION)
    column = tl.arange(0, HIDDEN)
    v = tl.load(score + unit, unit < attention, 0.0).to(tl.float32)
    top = -float("inf")
    total = 0.0
    pooled = tl.zeros([HIDDEN], tl.float32)
    for t in range(0, steps, STEPS):
        time = t + tl.arange(0, STEPS)
        y, _ = _activations(h, weight, bias, seed, keep_scale, threshold, row, t, steps, hidden, attention, BIAS, DROPOUT, STEPS,
                            COLUMNS, ATTENTION)  # fmt: skip
        s = tl.sum(y * v[None, :], 1)  # [STEPS]
        tl.store(weights + row * steps + time, s, time < steps)
        s = tl.where(time < steps, s, -float("inf"))
        new_top = tl.maximum(top, tl.max(s, 0))
        p = tl.exp(s - new_top)
        shrink = tl.exp(top - new_top)
        there = (time < steps)[:, None] & (column < hidden)[None, :]
        x = tl.load(h + (row * steps + time)[:, None] * hidden + column[None, :], there, 0.0).to(tl.float32)
        pooled = pooled * shrink + tl.sum(p[:, None] * x, 0)
        total = total * shrink + tl.sum(p, 0)
        top = new_top
    tl.debug_barrier()  # scores are read back by other threads than wrote them
    for t in range(0, steps, STEPS):
        time = t + tl.arange(0, STEPS)
        s = tl.load(weights + row * steps + time, time < steps, 0.0)
        tl.store(weights + row * steps + time, tl.exp(s - top) / total, time < steps)
    last = tl.load(h + (row * steps + steps - 1) * hidden + column, column < hidden, 0.0)
    tl.store(out + row * 2 * hidden + column, last, column < hidden)
    tl.store(out + row * 2 * hidden + hidden + column, pooled / total, column < hidden)


@triton.jit
def _backward(grad, grad_weights, h, weight, bias, score, weights, dh, du, dscore, seed, keep_scale, threshold, steps, hidden,
              attention, BIAS: tl.constexpr, DROPOUT: tl.constexpr, GRAD_WEIGHTS: tl.constexpr, STEPS: tl.constexpr,
              COLUMNS: tl.constexpr, ATTENTION: tl.constexpr, HIDDEN: tl.constexpr):  # fmt: skip
    """dh, the gradient of W h + b to du [B, T, A] in float32, and this row's part of the score's gradient to dscore [B, A]."""
    row = tl.program_id(0).to(tl.int64)
    if DROPOUT:
        seed = tl.load(seed)  # once: in the loops it would cost registers
    unit = tl.arange(0, ATTENTION)
    column = tl.arange(0, HIDDEN)
    v = tl.load(score + unit, unit < attention, 0.0).to(tl.float32)
    g = tl.load(grad + row * 2 * hidden + hidden + column, column < hidden, 0.0).to(tl.float32)
    mean = 0.0
    for t in range(0, steps, STEPS):
        time = t + tl.arange(0, STEPS)
        there = (time < steps)[:, None] & (column < hidden)[None, :]
        x = tl.load(h + (row * steps + time)[:, None] * hidden + column[None, :], there, 0.0).to(tl.float32)
        da = tl.sum(x * g[None, :], 1)
        if GRAD_WEIGHTS:
            da += tl.load(grad_weights + row * steps + time, time < steps, 0.0).to(tl.float32)
        mean += tl.sum(tl.load(weights + row * steps + time, time < steps, 0.0) * da, 0)
    of_score = tl.zeros([ATTENTION], tl.float32)
    for t in range(0, steps, STEPS):
        time = t + tl.arange(0, STEPS)
        there = (time < steps)[:, None] & (column < hidden)[None, :]
        x = tl.load(h + (row * steps + time)[:, None] * hidden + column[None, :], there, 0.0).to(tl.float32)
        da = tl.sum(x * g[None, :], 1)
        if GRAD_WEIGHTS:
            da += tl.load(grad_weights + row * steps + time, time < steps, 0.0).to(tl.float32)
        a = tl.load(weights + row * steps + time, time < steps, 0.0)
        ds = tl.where(time < steps, a * (da - mean), 0.0)  # [STEPS]
        y, factor = _activations(h, weight, bias, seed, keep_scale, threshold, row, t, steps, hidden, attention, BIAS, DROPOUT, STEPS,
                                 COLUMNS, ATTENTION)  # fmt: skip
        of_score += tl.sum(ds[:, None] * y, 0)
        d = ds[:, None] * v[None, :] * (1.0 - y * y) * factor  # [STEPS, ATTENTION]
        tl.store(du + (row * steps + time)[:, None] * attention + unit[None, :], d, (time < steps)[:, None] & (unit < attention)[None, :])
        for j in range(0, hidden, COLUMNS):
            part = j + tl.arange(0, COLUMNS)
            w = tl.load(weight + unit[:, None] * hidden + part[None, :], (unit < attention)[:, None] & (part < hidden)[None, :], 0.0)
            g_part = tl.load(grad + row * 2 * hidden + hidden + part, part < hidden, 0.0).to(tl.float32)
            g_last = tl.load(grad + row * 2 * hidden + part, part < hidden, 0.0).to(tl.float32)
            x_grad = tl.dot(d, w.to(tl.float32), a[:, None] * g_part[None, :], input_precision="ieee")
            x_grad += tl.where((time == steps - 1)[:, None], g_last[None, :], 0.0)
            at = (row * steps + time)[:, None] * hidden + part[None, :]
            tl.store(dh + at, x_grad, (time < steps)[:, None] & (part < hidden)[None, :])
    tl.store(dscore + row * attention + unit, of_score, unit < attention)


def _options(h: Tensor, score: Tensor, bias: Tensor | None, seed: Tensor | None, dropout: float) -> tuple[tuple, dict]:
    """The seed, the scalars and the constants that both kernels take."""
    p = dropout if seed is not None else 0.0
    seed = h if seed is None else seed.to(h.device)  # h stands in where nothing is drawn
    numbers = (seed, 1 / (1 - p) if p < 1 else 0.0, round(p * 2**32), h.shape[1], h.shape[2], score.shape[0])
    blocks = {
        "BIAS": bias is not None,
        "DROPOUT": p > 0,
        "STEPS": STEPS,
        "COLUMNS": COLUMNS,
        "ATTENTION": max(16, triton.next_power_of_2(score.shape[0])),
        "HIDDEN": triton.next_power_of_2(h.shape[2]),
    }
    return numbers, blocks


def attention_pool(h: Tensor, weight: Tensor, bias: Tensor | None, score: Tensor, seed: Tensor | None, dropout: float) -> tuple[Tensor, Tensor]:
    """(out [B, 2H], weights [B, T])."""
    h, weight, bias, score = dense(h, weight, bias, score)
    batch, steps, hidden = h.shape
    out = h.new_empty(batch, 2 * hidden)
    weights = h.new_empty(batch, steps, dtype=torch.float32)
    if h.numel():
        numbers, blocks = _options(h, score, bias, seed, dropout)
        _forward[(batch,)](h, weight, h if bias is None else bias, score, out, weights, *numbers, **blocks, num_warps=4)
    return out, weights.to(h.dtype)


def attention_pool_backward(
    grad: Tensor, grad_weights: Tensor | None, h: Tensor, weight: Tensor, bias: Tensor | None, score: Tensor, weights: Tensor,
    seed: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(dh, dweight, dbias, dscore)."""
    grad, grad_weights, h, weight, bias, score, weights = dense(grad, grad_weights, h, weight, bias, score, weights.float())
    batch, steps, hidden = h.shape
    attention = score.shape[0]
    dh = torch.empty_like(h)
    du = h.new_zeros(batch, steps, attention, dtype=torch.float32)
    dscore = h.new_zeros(batch, attention, dtype=torch.float32)
    if h.numel():
        numbers, blocks = _options(h, score, bias, seed, dropout)
        _backward[(batch,)](
            grad, grad if grad_weights is None else grad_weights, h, weight, h if bias is None else bias,
            score, weights, dh, du, dscore, *numbers, GRAD_WEIGHTS=grad_weights is not None, **blocks, num_warps=4,
        )  # fmt: skip
    du = du.view(-1, attention)
    dweight = (du.t() @ h.view(-1, hidden).float()).to(weight.dtype)
    return dh, dweight, du.sum(0).to(score.dtype), dscore.sum(0).to(score.dtype)


_NUMBERS = {"seed": "*i64", "keep_scale": "fp32", "threshold": "i64", "steps": "i32", "hidden": "i32", "attention": "i32"}
_BLOCKS = {"BIAS": True, "DROPOUT": True, "STEPS": STEPS, "COLUMNS": COLUMNS, "ATTENTION": 32, "HIDDEN": 64}


def _pointers(dtype: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), dtype)


AOT = [(_forward, {**_pointers(d, "h weight bias score out"), "weights": "*fp32", **_NUMBERS}, _BLOCKS, 4) for d in ("*fp32", "*bf16")] + [
    (
        _backward,
        {**_pointers(d, "grad grad_weights h weight bias score dh"), **_pointers("*fp32", "weights du dscore"), **_NUMBERS},
        {**_BLOCKS, "GRAD_WEIGHTS": True},
        4,
    )
    for d in ("*fp32", "*bf16")
]
