"""All of the encoder layer that follows attention, on the GPU, as one kernel forward: output projection, dropout, residual and norm
make a tile [tokens, d]; it stays on the chip while the FFN goes over its hidden units tile by tile, and leaves through the second norm.

Hidden values never reach memory, backward included: the gradient of the FFN's input takes one pass over them (a program keeps its
tokens), that of its weights another (a program keeps its hidden units), 14 d f FLOPs a token in place of the 10 d f of storing them;
to store and read [tokens, f] would move 16 f bytes a token in float32, which at d = 64 takes longer. The weights' sums over tokens
are cut into parts by sizes alone and joined in order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_dropout import dropout_tile


@triton.jit
def _normalised(z, real, d, eps):
    """(xhat, rstd) of rows [ROWS, D] that are zero beyond the d real columns."""
    centred = tl.where(real[None, :], z - (tl.sum(z, 1) / d)[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / d + eps)
    return centred * rstd[:, None], rstd


@triton.jit
def _through_norm(grad, xhat, rstd, gamma, d):
    g = grad * gamma[None, :]
    mean, dot = tl.sum(g, 1) / d, tl.sum(g * xhat, 1) / d
    return (g - mean[:, None] - xhat * dot[:, None]) * rstd[:, None]


@triton.jit
def _vector(pointer, index, real):
    return tl.load(pointer + index, real, 0.0).to(tl.float32)


@triton.jit
def feed_forward(mixed, s, w_out, b_out, w1, b1, w2, b2, gamma1, beta1, gamma2, beta2, sum1, sum2, y, seed, threshold, keep_scale, eps,
                 tokens, d, f, DROPOUT: tl.constexpr, KEEP: tl.constexpr, Y: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr,
                 F: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """From the heads' outputs `mixed` and the layer's input s, both [tokens, d]: what the norms take in, and y."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    if DROPOUT:
        seed = tl.load(seed)  # once: in the loops it would cost registers
    column = tl.arange(0, D)
    here, real = row < tokens, column < d
    at, there = row[:, None] * d + column[None, :], here[:, None] & real[None, :]
    attended = tl.zeros([ROWS, D], tl.float32)
    for first in range(0, d, K):
        k = first + tl.arange(0, K)
        m = tl.load(mixed + row[:, None] * d + k[None, :], here[:, None] & (k < d)[None, :], 0.0)
        w = tl.load(w_out + column[None, :] * d + k[:, None], (k < d)[:, None] & real[None, :], 0.0)
        attended = tl.dot(m, w, attended, input_precision=PRECISION)
    attended += _vector(b_out, column, real)[None, :]
    if DROPOUT:
        attended *= dropout_tile(seed, threshold, keep_scale, row, 0, d, 1, ROWS, D)
    z = attended + tl.load(s + at, there, 0.0).to(tl.float32)
    if KEEP:
        tl.store(sum1 + at, z, there)
    xhat, _ = _normalised(z, real, d, eps)
    a = xhat * _vector(gamma1, column, real)[None, :] + _vector(beta1, column, real)[None, :]
    operand = a.to(s.dtype.element_ty)
    fed = tl.zeros([ROWS, D], tl.float32)
    for first in range(0, f, F):
        unit = first + tl.arange(0, F)
        whole = (unit < f)[:, None] & real[None, :]
        up = tl.load(w1 + unit[:, None] * d + column[None, :], whole, 0.0)  # [F, D]
        hidden = tl.dot(operand, tl.trans(up), input_precision=PRECISION) + _vector(b1, unit, unit < f)[None, :]
        hidden = tl.where(hidden <= 0.0, 0.0, hidden)  # a NaN stays
        if DROPOUT:
            hidden *= dropout_tile(seed, threshold, keep_scale, row, first, f, 2, ROWS, F)
        down = tl.load(w2 + column[None, :] * f + unit[:, None], whole, 0.0)  # [F, D]
        fed = tl.dot(hidden.to(operand.dtype), down, fed, input_precision=PRECISION)
    fed += _vector(b2, column, real)[None, :]
    if DROPOUT:
        fed *= dropout_tile(seed, threshold, keep_scale, row, 0, d, 3, ROWS, D)
    z = a + fed
    if KEEP:
        tl.store(sum2 + at, z, there)
    if Y:
        xhat, _ = _normalised(z, real, d, eps)
        tl.store(y + at, xhat * _vector(gamma2, column, real)[None, :] + _vector(beta2, column, real)[None, :], there)


@triton.jit
def feed_forward_backward(grad, sum1, sum2, w1, b1, w2, gamma1, beta1, gamma2, a_out, dfed, dsum1, dattended, parts, seed, threshold,
                          keep_scale, eps, tokens, d, f, DROPOUT: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, F: tl.constexpr,
                          PRECISION: tl.constexpr):  # fmt: skip
    """From y's gradient: the FFN's input a again, the gradients of the FFN's output, of sum1 and of attention's output, [tokens, d]
    each, and this block's column sums [6, d] for gamma2, beta2, b2, gamma1, beta1 and b_out."""
    block = tl.program_id(0).to(tl.int64)
    if DROPOUT:
        seed = tl.load(seed)  # once: in the loops it would cost registers
    row = block * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, D)
    here, real = row < tokens, column < d
    at, there = row[:, None] * d + column[None, :], here[:, None] & real[None, :]
    own = parts + block * 6 * d + column
    g = tl.load(grad + at, there, 0.0).to(tl.float32)
    xhat, rstd = _normalised(tl.load(sum2 + at, there, 0.0).to(tl.float32), real, d, eps)
    tl.store(own, tl.sum(g * xhat, 0), real)
    tl.store(own + d, tl.sum(g, 0), real)
    g = _through_norm(g, xhat, rstd, _vector(gamma2, column, real), d)  # of sum2, then of a
    of_fed = g
    if DROPOUT:
        of_fed *= dropout_tile(seed, threshold, keep_scale, row, 0, d, 3, ROWS, D)
    tl.store(own + 2 * d, tl.sum(of_fed, 0), real)
    of_fed = of_fed.to(grad.dtype.element_ty)
    tl.store(dfed + at, of_fed, there)
    xhat, _ = _normalised(tl.load(sum1 + at, there, 0.0).to(tl.float32), real, d, eps)
    a = (xhat * _vector(gamma1, column, real)[None, :] + _vector(beta1, column, real)[None, :]).to(grad.dtype.element_ty)
    tl.store(a_out + at, a, there)
    for first in range(0, f, F):
        unit = first + tl.arange(0, F)
        whole = (unit < f)[:, None] & real[None, :]
        up = tl.load(w1 + unit[:, None] * d + column[None, :], whole, 0.0)  # [F, D]
        hidden = tl.dot(a, tl.trans(up), input_precision=PRECISION) + _vector(b1, unit, unit < f)[None, :]
        down = tl.load(w2 + column[None, :] * f + unit[:, None], whole, 0.0)  # [F, D]
        dhidden = tl.dot(of_fed, tl.trans(down), input_precision=PRECISION)
        if DROPOUT:
            dhidden *= dropout_tile(seed, threshold, keep_scale, row, first, f, 2, ROWS, F)
        dhidden = tl.where(hidden <= 0.0, 0.0, dhidden)
        g = tl.dot(dhidden.to(a.dtype), up, g, input_precision=PRECISION)
    # The first norm once more: its values would otherwise hold registers all through the loop.
    xhat, rstd = _normalised(tl.load(sum1 + at, there, 0.0).to(tl.float32), real, d, eps)
    tl.store(own + 3 * d, tl.sum(g * xhat, 0), real)
    tl.store(own + 4 * d, tl.sum(g, 0), real)
    g = _through_norm(g, xhat, rstd, _vector(gamma1, column, real), d)
    tl.store(dsum1 + at, g, there)
    if DROPOUT:  # else the caller takes dsum1 for both
        g *= dropout_tile(seed, threshold, keep_scale, row, 0, d, 1, ROWS, D)
        tl.store(dattended + at, g, there)
    tl.store(own + 5 * d, tl.sum(g, 0), real)


@triton.jit
def feed_forward_weights(a, dfed, w1, b1, w2, dw1, dw2, db1, seed, threshold, keep_scale, tokens, share, d, f, DROPOUT: tl.constexpr,
                         ROWS: tl.constexpr, D: tl.constexpr, F: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Gradients of the FFN's weights for F hidden units, over `share` tokens, to part program_id(1): dw1, dw2 (transposed)
    [parts, f, d], db1 [parts, f], all float32."""
    unit = tl.program_id(0) * F + tl.arange(0, F)
    if DROPOUT:
        seed = tl.load(seed)  # once: in the loops it would cost registers
    part = tl.program_id(1)
    column = tl.arange(0, D)
    real, there = column < d, (unit < f)[:, None] & (column < d)[None, :]
    up = tl.load(w1 + unit[:, None] * d + column[None, :], there, 0.0)  # [F, D]
    down = tl.load(w2 + column[None, :] * f + unit[:, None], there, 0.0)  # [F, D]
    bias = _vector(b1, unit, unit < f)
    up_sum = tl.zeros([F, D], tl.float32)
    down_sum = tl.zeros([F, D], tl.float32)
    bias_sum = tl.zeros([F], tl.float32)
    for first in range(part * share, tl.minimum((part + 1) * share, tokens), ROWS):
        row = first + tl.arange(0, ROWS).to(tl.int64)
        at, whole = row[:, None] * d + column[None, :], (row < tokens)[:, None] & real[None, :]
        x = tl.load(a + at, whole, 0.0)
        g = tl.load(dfed + at, whole, 0.0)
        hidden = tl.dot(up, tl.trans(x), input_precision=PRECISION) + bias[:, None]  # [F, ROWS]
        dhidden = tl.dot(down, tl.trans(g), input_precision=PRECISION)
        dead = hidden <= 0.0
        if DROPOUT:
            factor = tl.trans(dropout_tile(seed, threshold, keep_scale, row, tl.program_id(0) * F, f, 2, ROWS, F))
            hidden *= factor
            dhidden *= factor
        dhidden = tl.where(dead, 0.0, dhidden)
        up_sum = tl.dot(dhidden.to(x.dtype), x, up_sum, input_precision=PRECISION)
        down_sum = tl.dot(tl.where(dead, 0.0, hidden).to(x.dtype), g, down_sum, input_precision=PRECISION)
        bias_sum += tl.sum(dhidden, 1)
    place = part.to(tl.int64) * f + unit
    tl.store(dw1 + place[:, None] * d + column[None, :], up_sum, there)
    tl.store(dw2 + place[:, None] * d + column[None, :], down_sum, there)
    tl.store(db1 + place, bias_sum, unit < f)
