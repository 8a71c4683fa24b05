"""The state-frequency memory on the GPU: one program owns a tile of rows for all T steps, with S in its registers.

Only the hidden state goes through memory, a few hundred bytes a step, because every unit of the next step needs all of it; the
weights come from the caches. The backward pass runs S forward from the gates that were kept, leaving a checkpoint every SEGMENT steps,
and then each segment forward and back; its last products, over all rows and steps, are matrix products.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ghost_batch_norm.op import statistics_dtype
from ..ghost_batch_norm.triton import dense, pointers

CHUNK = 32  # terms of the hidden state's products taken at once
SEGMENT = 8  # steps between two checkpoints of S


@triton.jit
def _hard_sigmoid(z):
    g = z / 6.0 + 0.5
    g = tl.where(g < 0.0, 0.0, g)  # comparisons that let a NaN through
    return tl.where(g > 1.0, 1.0, g)


@triton.jit
def _through_hard_sigmoid(gate, grad):
    return tl.where((gate > 0.0) & (gate < 1.0), grad / 6.0, 0.0)


@triton.jit
def _tanh(x):
    """By its series where the exponentials would cancel."""
    y = x * x
    series = x * (1.0 + y * (-1.0 / 3 + y * (2.0 / 15 + y * (-17.0 / 315 + y * (62.0 / 2835)))))
    e = tl.exp(-2.0 * tl.abs(x))
    t = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(x) < 0.25, series, tl.where(x < 0.0, -t, t))


@triton.jit
def _linear(x, state, weight_x, weight_h, bias, row, real, d, column, there, features, units, width, CHUNK: tl.constexpr):
    """`x weight_x + state weight_h + bias` of some columns: x [ROWS, D] in registers, state in memory -> [ROWS, columns]."""
    wx = tl.load(weight_x + d[:, None] * width + column[None, :], (d < features)[:, None] & there[None, :], 0.0).to(tl.float32)
    z = tl.load(bias + column, there, 0.0).to(tl.float32)[None, :] + tl.sum(x[:, :, None] * wx[None, :, :], 1)
    for begin in range(0, units, CHUNK):
        u = begin + tl.arange(0, CHUNK)
        h = tl.load(state + row[:, None] * units + u[None, :], real[:, None] & (u < units)[None, :], 0.0)
        wh = tl.load(weight_h + u[:, None] * width + column[None, :], (u < units)[:, None] & there[None, :], 0.0).to(tl.float32)
        z += tl.sum(h[:, :, None] * wh[None, :, :], 1)
    return z


@triton.jit
def _advance(real, imaginary, keep, new, cosine, sine):
    """S after a step: keep [ROWS, H, F], new [ROWS, H], the waves [F]."""
    real = keep * real + new[:, :, None] * cosine[None, None, :]
    return real, keep * imaginary + new[:, :, None] * sine[None, None, :]


@triton.jit
def _forward(x, weight_x, weight_h, bias, weight_a, bias_a, waves, mask, state, out, hidden, gates, batch, steps, features,
             units, frequencies, MASK: tl.constexpr, KEEP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, H: tl.constexpr,
             F: tl.constexpr, CHUNK: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d, u, k = tl.arange(0, D), tl.arange(0, H), tl.arange(0, F)
    here, unit, frequency = row < batch, u < units, k < frequencies
    there = here[:, None] & unit[None, :]
    at = row[:, None] * units + u[None, :]
    width = 4 * units + frequencies
    amplitude = tl.load(weight_a + k, frequency, 0.0).to(tl.float32)
    shift = tl.load(bias_a + u, unit, 0.0).to(tl.float32)
    real = tl.zeros((ROWS, H, F), tl.float32)
    imaginary = tl.zeros((ROWS, H, F), tl.float32)
    for t in range(0, steps):
        x_at = (row * steps + t)[:, None] * features + d[None, :]
        xt = tl.load(x + x_at, here[:, None] & (d < features)[None, :], 0.0).to(tl.float32)
        zi = _linear(xt, state, weight_x, weight_h, bias, row, here, d, u, unit, features, units, width, CHUNK)
        zc = _linear(xt, state, weight_x, weight_h, bias, row, here, d, 2 * units + u, unit, features, units, width, CHUNK)
        i, c = _hard_sigmoid(zi), _tanh(zc)
        zs = _linear(xt, state, weight_x, weight_h, bias, row, here, d, units + u, unit, features, units, width, CHUNK)
        zf = _linear(xt, state, weight_x, weight_h, bias, row, here, d, 4 * units + k, frequency, features, units, width, CHUNK)
        s, f = _hard_sigmoid(zs), _hard_sigmoid(zf)
        cosine = tl.load(waves + 2 * t * frequencies + k, frequency, 0.0).to(tl.float32)
        sine = tl.load(waves + (2 * t + 1) * frequencies + k, frequency, 0.0).to(tl.float32)
        real, imaginary = _advance(real, imaginary, s[:, :, None] * f[:, None, :], i * c, cosine, sine)
        power = tl.sum((real * real + imaginary * imaginary) * amplitude[None, None, :], 2)
        zo = _linear(xt, state, weight_x, weight_h, bias, row, here, d, 3 * units + u, unit, features, units, width, CHUNK)
        o = _hard_sigmoid(zo)
        h = o * _tanh(power + shift[None, :])
        if KEEP:
            tl.store(hidden + (row * steps + t)[:, None] * units + u[None, :], h, there)
            base = (row * steps + t)[:, None] * width
            tl.store(gates + base + u[None, :], i, there)
            tl.store(gates + base + units + u[None, :], s, there)
            tl.store(gates + base + 2 * units + u[None, :], c, there)
            tl.store(gates + base + 3 * units + u[None, :], o, there)
            tl.store(gates + base + 4 * units + k[None, :], f, here[:, None] & frequency[None, :])
        if t == steps - 1:
            tl.store(out + at, h, there)
        if MASK:
            h *= tl.load(mask + at, there, 0.0).to(tl.float32)
        tl.debug_barrier()  # all of the old state has been read
        tl.store(state + at, h, there)
        tl.debug_barrier()  # all of the new one is there


@triton.jit
def _gates(gates, row, here, unit, frequency, u, k, t, steps, units, width):
    """The opened gates of step t but the output's: i, s, tanh c [ROWS, H], f [ROWS, F]."""
    base = (row * steps + t)[:, None] * width
    there = here[:, None] & unit[None, :]
    i = tl.load(gates + base + u[None, :], there, 0.0)
    s = tl.load(gates + base + units + u[None, :], there, 0.0)
    c = tl.load(gates + base + 2 * units + u[None, :], there, 0.0)
    f = tl.load(gates + base + 4 * units + k[None, :], here[:, None] & frequency[None, :], 0.0)
    return i, s, c, f


@triton.jit
def _backward(grad, gates, weight_h, weight_a, bias_a, waves, mask, checkpoints, states, dgates, damplitude, dbias, batch, steps, units,
              frequencies, MASK: tl.constexpr, ROWS: tl.constexpr, H: tl.constexpr, F: tl.constexpr, CHUNK: tl.constexpr,
              SEGMENT: tl.constexpr):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    row = program * ROWS + tl.arange(0, ROWS)
    u, k = tl.arange(0, H), tl.arange(0, F)
    here, unit, frequency = row < batch, u < units, k < frequencies
    there = here[:, None] & unit[None, :]
    width = 4 * units + frequencies
    segments = tl.cdiv(steps, SEGMENT)
    amplitude = tl.load(weight_a + k, frequency, 0.0).to(tl.float32)
    shift = tl.load(bias_a + u, unit, 0.0).to(tl.float32)
    # S in memory: [row, slot, re | im, H, F], padded, the slots being the checkpoints or the steps of a segment.
    place = u[None, :, None] * F + k[None, None, :]
    whole = there[:, :, None] & (k < F)[None, None, :]
    checkpoint = checkpoints + (row * segments * (2 * H * F))[:, None, None] + place
    kept = states + (row * SEGMENT * (2 * H * F))[:, None, None] + place

    real = tl.zeros((ROWS, H, F), tl.float32)
    imaginary = tl.zeros((ROWS, H, F), tl.float32)
    for segment in range(0, segments):
        tl.store(checkpoint + segment * (2 * H * F), real, whole)
        tl.store(checkpoint + segment * (2 * H * F) + H * F, imaginary, whole)
        for t in range(segment * SEGMENT, tl.minimum((segment + 1) * SEGMENT, steps)):
            i, s, c, f = _gates(gates, row, here, unit, frequency, u, k, t, steps, units, width)
            cosine = tl.load(waves + 2 * t * frequencies + k, frequency, 0.0).to(tl.float32)
            sine = tl.load(waves + (2 * t + 1) * frequencies + k, frequency, 0.0).to(tl.float32)
            real, imaginary = _advance(real, imaginary, s[:, :, None] * f[:, None, :], i * c, cosine, sine)

    dh = tl.load(grad + row[:, None] * units + u[None, :], there, 0.0).to(tl.float32)
    dreal = tl.zeros((ROWS, H, F), tl.float32)
    dimaginary = tl.zeros((ROWS, H, F), tl.float32)
    du = tl.zeros((F,), tl.float32)
    db = tl.zeros((H,), tl.float32)
    for back in range(0, segments):
        segment = segments - 1 - back
        start = segment * SEGMENT
        stop = tl.minimum(start + SEGMENT, steps)
        tl.debug_barrier()
        real = tl.load(checkpoint + segment * (2 * H * F), whole, 0.0)
        imaginary = tl.load(checkpoint + segment * (2 * H * F) + H * F, whole, 0.0)
        for t in range(start, stop):
            tl.store(kept + (t - start) * (2 * H * F), real, whole)
            tl.store(kept + (t - start) * (2 * H * F) + H * F, imaginary, whole)
            i, s, c, f = _gates(gates, row, here, unit, frequency, u, k, t, steps, units, width)
            cosine = tl.load(waves + 2 * t * frequencies + k, frequency, 0.0).to(tl.float32)
            sine = tl.load(waves + (2 * t + 1) * frequencies + k, frequency, 0.0).to(tl.float32)
            real, imaginary = _advance(real, imaginary, s[:, :, None] * f[:, None, :], i * c, cosine, sine)
        tl.debug_barrier()
        for step in range(0, stop - start):
            t = stop - 1 - step
            base = (row * steps + t)[:, None] * width
            i, s, c, f = _gates(gates, row, here, unit, frequency, u, k, t, steps, units, width)
            o = tl.load(gates + base + 3 * units + u[None, :], there, 0.0)
            cosine = tl.load(waves + 2 * t * frequencies + k, frequency, 0.0).to(tl.float32)
            sine = tl.load(waves + (2 * t + 1) * frequencies + k, frequency, 0.0).to(tl.float32)
            # `real`, `imaginary` are S after the step here, and before it from the loads on.
            power = real * real + imaginary * imaginary
            a = _tanh(tl.sum(power * amplitude[None, None, :], 2) + shift[None, :])
            dpower = dh * o * (1.0 - a * a)
            db += tl.sum(dpower, 0)
            du += tl.sum(tl.sum(dpower[:, :, None] * power, 1), 0)
            slope = 2.0 * dpower[:, :, None] * amplitude[None, None, :]
            dreal += slope * real
            dimaginary += slope * imaginary
            dc = tl.sum(dreal * cosine[None, None, :] + dimaginary * sine[None, None, :], 2)
            real = tl.load(kept + (t - start) * (2 * H * F), whole, 0.0)
            imaginary = tl.load(kept + (t - start) * (2 * H * F) + H * F, whole, 0.0)
            dkeep = dreal * real + dimaginary * imaginary
            ds = tl.sum(dkeep * f[:, None, :], 2)
            df = tl.sum(dkeep * s[:, :, None], 1)
            keep = s[:, :, None] * f[:, None, :]
            dreal *= keep
            dimaginary *= keep
            tl.store(dgates + base + u[None, :], _through_hard_sigmoid(i, dc * c), there)
            tl.store(dgates + base + units + u[None, :], _through_hard_sigmoid(s, ds), there)
            tl.store(dgates + base + 2 * units + u[None, :], dc * i * (1.0 - c * c), there)
            tl.store(dgates + base + 3 * units + u[None, :], _through_hard_sigmoid(o, dh * a), there)
            tl.store(dgates + base + 4 * units + k[None, :], _through_hard_sigmoid(f, df), here[:, None] & frequency[None, :])
            tl.debug_barrier()  # the next product reads what all threads have written
            dh = tl.zeros((ROWS, H), tl.float32)
            for begin in range(0, width, CHUNK):
                j = begin + tl.arange(0, CHUNK)
                dz = tl.load(dgates + base + j[None, :], here[:, None] & (j < width)[None, :], 0.0)
                w = tl.load(weight_h + u[None, :] * width + j[:, None], unit[None, :] & (j < width)[:, None], 0.0).to(tl.float32)
                dh += tl.sum(dz[:, :, None] * w[None, :, :], 1)
            if MASK:
                dh *= tl.load(mask + row[:, None] * units + u[None, :], there, 0.0).to(tl.float32)
    tl.store(damplitude + program * frequencies + k, du, frequency)
    tl.store(dbias + program * units + u, db, unit)


def _tiling(features: int, units: int, frequencies: int, backward: bool = False) -> dict[str, int]:
    """Padded sizes, and as many rows and warps as keep S, and in the backward pass its gradient, in registers."""
    h, f = triton.next_power_of_2(units), triton.next_power_of_2(frequencies)
    small, middle = (1024, 2048) if backward else (2048, 4096)  # elements of S
    return {
        "ROWS": min(8, max(1, 1024 // (h * f))),
        "D": triton.next_power_of_2(max(features, 1)),
        "H": h,
        "F": f,
        "CHUNK": CHUNK,
        "num_warps": 4 if h * f <= small else 8 if h * f <= middle else 16,
    }


def sfm(
    x: Tensor, weight_x: Tensor, weight_h: Tensor, bias: Tensor, weight_a: Tensor, bias_a: Tensor, waves: Tensor,
    hidden_mask: Tensor | None, training: bool
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(the last hidden state [B, H], and of all steps the hidden states [B, T, H] and the opened gates [B, T, 4H + F])."""
    x, weight_x, weight_h, bias, weight_a, bias_a, waves, hidden_mask = dense(x, weight_x, weight_h, bias, weight_a, bias_a, waves, hidden_mask)
    (batch, steps, features), units, frequencies = x.shape, bias_a.shape[0], weight_a.shape[0]
    out = x.new_empty(batch, units)
    kept, dtype = batch if training else 0, statistics_dtype(x)
    hidden, gates = x.new_empty(kept, steps, units, dtype=dtype), x.new_empty(kept, steps, bias.shape[0], dtype=dtype)
    if out.numel():
        tiling = _tiling(features, units, frequencies)
        state = torch.zeros_like(out, dtype=hidden.dtype)
        _forward[(triton.cdiv(batch, tiling["ROWS"]),)](
            x, weight_x, weight_h, bias, weight_a, bias_a, waves, x if hidden_mask is None else hidden_mask, state, out, hidden,
            gates, batch, steps, features, units, frequencies, MASK=hidden_mask is not None, KEEP=training, **tiling,
        )  # fmt: skip
    return out, hidden, gates


def sfm_backward(
    grad: Tensor, x: Tensor, weight_x: Tensor, weight_h: Tensor, bias: Tensor, weight_a: Tensor, bias_a: Tensor, waves: Tensor,
    hidden_mask: Tensor | None, hidden: Tensor, gates: Tensor, x_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(dx or empty, dweight_x, dweight_h, dbias, dweight_a, dbias_a)."""
    grad, x, hidden_mask, hidden, gates, waves = dense(grad, x, hidden_mask, hidden, gates, waves)
    parameters = dense(weight_x, weight_h, bias, weight_a, bias_a)
    weight_x, weight_h, bias, weight_a, bias_a = parameters
    (batch, steps, features), units, frequencies = x.shape, bias_a.shape[0], weight_a.shape[0]
    dtype = hidden.dtype
    if batch * units == 0:
        return x.new_empty(batch if x_gradient else 0, steps, features), *(torch.zeros_like(p) for p in parameters)
    before = torch.zeros_like(hidden)  # the hidden state as it enters each step's gates
    before[:, 1:] = hidden[:, :-1] if hidden_mask is None else hidden[:, :-1] * hidden_mask[:, None].to(dtype)
    tiling = _tiling(features, units, frequencies, backward=True)
    del tiling["D"]
    programs, state = triton.cdiv(batch, tiling["ROWS"]), 2 * tiling["H"] * tiling["F"]
    checkpoints = hidden.new_empty(batch, triton.cdiv(steps, SEGMENT), state)
    states = hidden.new_empty(batch, SEGMENT, state)
    dgates = torch.empty_like(gates)
    damplitude, dbias_a = hidden.new_empty(programs, frequencies), hidden.new_empty(programs, units)
    _backward[(programs,)](
        grad, gates, weight_h, weight_a, bias_a, waves, grad if hidden_mask is None else hidden_mask, checkpoints, states, dgates,
        damplitude, dbias_a, batch, steps, units, frequencies, MASK=hidden_mask is not None, SEGMENT=SEGMENT, **tiling,
    )  # fmt: skip
    dgates = dgates.view(-1, bias.shape[0])  # [B * T, 4H + F]
    rows_x, rows_h = x.view(-1, features).to(dtype), before.view(-1, units)
    dx = (dgates @ weight_x.to(dtype).t()).view(x.shape) if x_gradient else x.new_empty(0, steps, features)
    gradients = (rows_x.t() @ dgates, rows_h.t() @ dgates, dgates.sum(0), damplitude.sum(0), dbias_a.sum(0))
    return dx.to(x.dtype), *(g.to(p.dtype) for g, p in zip(gradients, parameters, strict=True))


_SIZES = {name: "i32" for name in ("batch", "steps", "features", "units", "frequencies")}
_TILE = {"ROWS": 1, "H": 64, "F": 32, "CHUNK": CHUNK}
_PARAMETERS = ("weight_h", "weight_a", "bias_a", "waves", "mask")
AOT = [
    (
        _forward,
        {**pointers("x", "weight_x", "bias", *_PARAMETERS, "state", "out", "hidden", "gates"), **_SIZES},
        {"MASK": True, "KEEP": True, "D": 8, **_TILE},
        4,
    ),
    (
        _backward,
        {**pointers("grad", "gates", *_PARAMETERS, "checkpoints", "states", "dgates", "damplitude", "dbias"), **_SIZES},
        {"MASK": True, "SEGMENT": SEGMENT, **_TILE},
        8,
    ),
]
