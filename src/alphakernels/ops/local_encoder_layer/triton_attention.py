"""Self-attention over the T steps of a sample on the GPU, tile by tile with an online softmax (Dao et al. 2022, arXiv:2205.14135).

A program takes one head of one sample and a block of its steps. Up to BLOCK steps, which is every model of Qlib, a head's scores are
one tile: the backward pass is then a single kernel with five products, and needs nothing but q, k, v and the gradient. Beyond that it
takes the rows' maxima and sums from a forward pass and goes over the tiles twice, for dk and dv and for dq, so that no sum is shared.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_dropout import dropout_tile


@triton.jit
def _rows(base, step, stride, steps, head_width, H: tl.constexpr):
    """[steps of the block, H] of one head, zero beyond the last step and the head's width."""
    c = tl.arange(0, H)
    at = step.to(tl.int64)[:, None] * stride + c[None, :]
    return tl.load(base + at, (step < steps)[:, None] & (c < head_width)[None, :], 0.0)


@triton.jit
def _store_rows(base, step, stride, steps, head_width, values, H: tl.constexpr):
    c = tl.arange(0, H)
    at = step.to(tl.int64)[:, None] * stride + c[None, :]
    tl.store(base + at, values, (step < steps)[:, None] & (c < head_width)[None, :])


@triton.jit
def _scores(q, k, mask, i, j, steps, scale, MASK: tl.constexpr, PRECISION: tl.constexpr):
    """q k^T * scale + mask of the steps i and j, float32; -inf beyond the last step."""
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    if MASK:
        there = (i < steps)[:, None] & (j < steps)[None, :]
        s += tl.load(mask + i[:, None] * steps + j[None, :], there, 0.0).to(tl.float32)
    return tl.where((j < steps)[None, :], s, -float("inf"))


@triton.jit
def attend(qkv, mask, mixed, tops, totals, seed, threshold, keep_scale, scale, steps, width, heads, head_width, MASK: tl.constexpr,
           DROPOUT: tl.constexpr, OUT: tl.constexpr, STATISTICS: tl.constexpr, BLOCK: tl.constexpr, H: tl.constexpr,
           PRECISION: tl.constexpr):  # fmt: skip
    """mixed [B, T, d], the heads' outputs side by side, from qkv [B, T, 3d]; and the softmax's maxima and sums [B, heads, T]."""
    place = tl.program_id(0).to(tl.int64)  # sample * heads + head
    if DROPOUT:
        seed = tl.load(seed)  # once: in the loops it would cost registers
    sample, head = place // heads, place % heads
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    base = qkv + sample * steps * 3 * width + head * head_width
    q = _rows(base, i, 3 * width, steps, head_width, H)
    top = tl.full([BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    out = tl.zeros([BLOCK, H], tl.float32)
    for first in range(0, steps, BLOCK):
        j = first + tl.arange(0, BLOCK)
        s = _scores(q, _rows(base + width, j, 3 * width, steps, head_width, H), mask, i, j, steps, scale, MASK, PRECISION)
        new = tl.maximum(top, tl.max(s, 1))
        shift = tl.where(new == -float("inf"), 0.0, new)  # a row that is masked so far
        p = tl.exp(s - shift[:, None])
        shrink = tl.exp(top - shift)
        total = total * shrink + tl.sum(p, 1)
        if OUT:
            if DROPOUT:
                p *= dropout_tile(seed, threshold, keep_scale, place * steps + i, first, steps, 0, BLOCK, BLOCK)
            v = _rows(base + 2 * width, j, 3 * width, steps, head_width, H)
            out = tl.dot(p.to(v.dtype), v, out * shrink[:, None], input_precision=PRECISION)
        top = new
    if OUT:
        _store_rows(mixed + sample * steps * width + head * head_width, i, width, steps, head_width, out / total[:, None], H)
    if STATISTICS:
        tl.store(tops + place * steps + i, top, i < steps)
        tl.store(totals + place * steps + i, total, i < steps)


@triton.jit
def _through_softmax(q, k, v, dout, mask, tops, totals, delta, seed, threshold, keep_scale, scale, place, i, j, first, steps,
                     MASK: tl.constexpr, DROPOUT: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr,
                     PRECISION: tl.constexpr):  # fmt: skip
    """(the weights after dropout, the gradient of q k^T) of one tile. `delta` [BLOCK]: the rows' dout · out; not read if WHOLE."""
    s = _scores(q, k, mask, i, j, steps, scale, MASK, PRECISION)
    if WHOLE:
        p = tl.exp(s - tl.max(s, 1)[:, None])
        p = p / tl.sum(p, 1)[:, None]
    else:
        top = tl.load(tops + place * steps + i, i < steps, 0.0)
        total = tl.load(totals + place * steps + i, i < steps, 1.0)
        p = tl.exp(s - top[:, None]) / total[:, None]
    dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
    dropped = p
    if DROPOUT:
        factor = dropout_tile(seed, threshold, keep_scale, place * steps + i, first, steps, 0, BLOCK, BLOCK)
        dropped = p * factor
        dp *= factor
    if WHOLE:
        delta = tl.sum(p * dp, 1)
    return dropped, p * (dp - delta[:, None]) * scale


@triton.jit
def attend_backward(qkv, mask, mixed, dmixed, tops, totals, dqkv, seed, threshold, keep_scale, scale, steps, width, heads, head_width,
                    MASK: tl.constexpr, DROPOUT: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr, H: tl.constexpr,
                    PRECISION: tl.constexpr):  # fmt: skip
    """dqkv [B, T, 3d] from dmixed [B, T, d]; mixed, tops and totals are read only where T takes several blocks."""
    place = tl.program_id(0).to(tl.int64)
    if DROPOUT:
        seed = tl.load(seed)  # once: in the loops it would cost registers
    sample, head = place // heads, place % heads
    stride = 3 * width
    block = tl.program_id(1) * BLOCK
    own = block + tl.arange(0, BLOCK)
    base = qkv + sample * steps * stride + head * head_width
    grad = dqkv + sample * steps * stride + head * head_width
    of_out = sample * steps * width + head * head_width
    if WHOLE:
        q = _rows(base, own, stride, steps, head_width, H)
        k = _rows(base + width, own, stride, steps, head_width, H)
        v = _rows(base + 2 * width, own, stride, steps, head_width, H)
        dout = _rows(dmixed + of_out, own, width, steps, head_width, H)
        weights, ds = _through_softmax(q, k, v, dout, mask, tops, totals, 0.0, seed, threshold, keep_scale, scale, place, own, own, 0,
                                       steps, MASK, DROPOUT, True, BLOCK, PRECISION)  # fmt: skip
        ds = ds.to(q.dtype)
        dv = tl.dot(tl.trans(weights.to(q.dtype)), dout, input_precision=PRECISION)
        dk = tl.dot(tl.trans(ds), q, input_precision=PRECISION)
        dq = tl.dot(ds, k, input_precision=PRECISION)
    else:
        k = _rows(base + width, own, stride, steps, head_width, H)
        v = _rows(base + 2 * width, own, stride, steps, head_width, H)
        dk = tl.zeros([BLOCK, H], tl.float32)
        dv = tl.zeros([BLOCK, H], tl.float32)
        for first in range(0, steps, BLOCK):
            i = first + tl.arange(0, BLOCK)
            q = _rows(base, i, stride, steps, head_width, H)
            dout = _rows(dmixed + of_out, i, width, steps, head_width, H)
            out = _rows(mixed + of_out, i, width, steps, head_width, H)
            delta = tl.sum(dout.to(tl.float32) * out.to(tl.float32), 1)
            weights, ds = _through_softmax(q, k, v, dout, mask, tops, totals, delta, seed, threshold, keep_scale, scale, place, i, own,
                                           block, steps, MASK, DROPOUT, False, BLOCK, PRECISION)  # fmt: skip
            dv = tl.dot(tl.trans(weights.to(q.dtype)), dout, dv, input_precision=PRECISION)
            dk = tl.dot(tl.trans(ds.to(q.dtype)), q, dk, input_precision=PRECISION)
        dq = tl.zeros([BLOCK, H], tl.float32)
        q = _rows(base, own, stride, steps, head_width, H)
        dout = _rows(dmixed + of_out, own, width, steps, head_width, H)
        out = _rows(mixed + of_out, own, width, steps, head_width, H)
        delta = tl.sum(dout.to(tl.float32) * out.to(tl.float32), 1)
        for first in range(0, steps, BLOCK):
            j = first + tl.arange(0, BLOCK)
            k = _rows(base + width, j, stride, steps, head_width, H)
            v = _rows(base + 2 * width, j, stride, steps, head_width, H)
            _, ds = _through_softmax(q, k, v, dout, mask, tops, totals, delta, seed, threshold, keep_scale, scale, place, own, j,
                                     first, steps, MASK, DROPOUT, False, BLOCK, PRECISION)  # fmt: skip
            dq = tl.dot(ds.to(q.dtype), k, dq, input_precision=PRECISION)
    _store_rows(grad, own, stride, steps, head_width, dq, H)
    _store_rows(grad + width, own, stride, steps, head_width, dk, H)
    _store_rows(grad + 2 * width, own, stride, steps, head_width, dv, H)
