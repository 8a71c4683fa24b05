"""Concept attention on the GPU: a program owns a tile of stocks, or of concepts in the backward pass, and walks the other side tile by
tile. A cosine is at most one, so that no maximum need be subtracted; no program adds to what another one writes.

Products are of float32: by the GPU's float32 units for float32, whose rounding they keep; by its TF32 tensor cores for half
precision, which TF32 holds exactly, with the range of float32 for weights and gradients that a half would flush to zero.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._days_triton import Days, day_range, day_tile
from ..ghost_batch_norm.op import statistics_dtype
from ..ghost_batch_norm.triton import dense, pointers

EPS = tl.constexpr(1e-6)  # beside the norms, Qlib's
ROWS = 32  # rows of a tile, stocks or concepts
OTHERS = 32  # rows of the other side that are taken at once
WARPS = 8  # four would spill
DEPTH = tl.constexpr(16)  # columns of both that are multiplied at once


def blocks(x: Tensor) -> dict:
    """Columns taken at once, and how products are made of them."""
    columns = max(16, min(64, triton.next_power_of_2(x.shape[1])))
    return {"COLUMNS": columns, "PRECISION": "ieee" if x.dtype == torch.float32 else "tf32", "num_warps": WARPS}


@triton.jit
def load_rows(x, row, there, column, hidden):
    """[rows, columns] in float32, zero where there is none."""
    at = row[:, None] * hidden + column[None, :]
    return tl.load(x + at, there[:, None] & (column < hidden)[None, :], 0.0).to(tl.float32)


@triton.jit
def factor(x, PRECISION: tl.constexpr):
    """x as a product takes it. Tensor cores leave off the last 13 bits of a float32 for TF32; rounded before, it errs by half as much, and
    a sum of the same weights agrees with the product that it divides."""
    if PRECISION == "tf32":
        bits = x.to(tl.int32, bitcast=True)
        x = tl.where(x == x, ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True), x)
    return x


@triton.jit
def cosines(x, i, real, y, j, there, hidden, PRECISION: tl.constexpr, ROWS: tl.constexpr, OTHERS: tl.constexpr):
    """Products [ROWS, OTHERS] of the rows i of x and j of y, norms of both, the sums of y's rows, and whether a value is not finite."""
    product = tl.zeros((ROWS, OTHERS), tl.float32)
    left = tl.zeros((ROWS,), tl.float32)
    right = tl.zeros((OTHERS,), tl.float32)
    sums = tl.zeros((OTHERS,), tl.float32)
    bad = tl.zeros((OTHERS,), tl.int32)
    for k in range(0, hidden, DEPTH):
        column = k + tl.arange(0, DEPTH)
        a = load_rows(x, i, real, column, hidden)
        b = load_rows(y, j, there, column, hidden)
        product = tl.dot(a, tl.trans(b), product, input_precision=PRECISION)
        left += tl.sum(a * a, 1)
        right += tl.sum(b * b, 1)
        sums += tl.sum(b, 1)
        bad |= tl.max((b * 0.0 != 0.0).to(tl.int32), 1)
    return product, tl.sqrt(left), tl.sqrt(right), sums, bad


@triton.jit
def row_products(x, i, real, y, j, there, hidden, PRECISION: tl.constexpr, ROWS: tl.constexpr, OTHERS: tl.constexpr):
    """x_i . y_j [ROWS, OTHERS]."""
    product = tl.zeros((ROWS, OTHERS), tl.float32)
    for k in range(0, hidden, DEPTH):
        column = k + tl.arange(0, DEPTH)
        b = load_rows(y, j, there, column, hidden)
        product = tl.dot(load_rows(x, i, real, column, hidden), tl.trans(b), product, input_precision=PRECISION)
    return product


@triton.jit
def _both_products(x, grad, i, real, y, j, there, hidden, PRECISION: tl.constexpr, ROWS: tl.constexpr, OTHERS: tl.constexpr):
    """Products [ROWS, OTHERS] of the rows i of x and of grad with the rows j of y, norms of y's rows, and 0 or 1: whether their sums are
    other than zero (the sums themselves, used twice by the caller, would crash Triton's compiler before 3.9)."""
    product = tl.zeros((ROWS, OTHERS), tl.float32)
    along = tl.zeros((ROWS, OTHERS), tl.float32)
    right = tl.zeros((OTHERS,), tl.float32)
    sums = tl.zeros((OTHERS,), tl.float32)
    for k in range(0, hidden, DEPTH):
        column = k + tl.arange(0, DEPTH)
        b = load_rows(y, j, there, column, hidden)
        product = tl.dot(load_rows(x, i, real, column, hidden), tl.trans(b), product, input_precision=PRECISION)
        along = tl.dot(load_rows(grad, i, real, column, hidden), tl.trans(b), along, input_precision=PRECISION)
        right += tl.sum(b * b, 1)
        sums += tl.sum(b, 1)
    return product, along, tl.sqrt(right), tl.where(sums != 0.0, 1.0, 0.0)


@triton.jit
def per_length(dnorm, length):
    """What a gradient of |x| gives each unit of x: nothing to a row of zeros."""
    return tl.where(length == 0.0, 0.0, dnorm / tl.where(length == 0.0, 1.0, length))


@triton.jit
def row_dots(a, b, row, there, hidden, ROWS: tl.constexpr):
    """a_i . b_i of a tile of rows."""
    dots = tl.zeros((ROWS,), tl.float32)
    for k in range(0, hidden, DEPTH):
        column = k + tl.arange(0, DEPTH)
        dots += tl.sum(load_rows(a, row, there, column, hidden) * load_rows(b, row, there, column, hidden), 1)
    return dots


@triton.jit
def _forward(x, concepts, offsets, concept_offsets, out, total, days, rows, members, hidden, MANY: tl.constexpr, ROWS: tl.constexpr,
             OTHERS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    day, _begin, end, start = day_tile(offsets, days, rows, ROWS, MANY)
    i = start + tl.arange(0, ROWS)
    real = i < end
    own = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first, last = day_range(concept_offsets, day, members, MANY)
    sums = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(first, last, OTHERS):
        j = begin + tl.arange(0, OTHERS)
        there = j < last
        product, left, right, rowsum, _bad = cosines(x, i, real, concepts, j, there, hidden, PRECISION, ROWS, OTHERS)
        weight = tl.exp(product / (left[:, None] * right[None, :] + EPS))
        weight = factor(tl.where((rowsum != 0.0)[None, :], weight, 0.0), PRECISION)  # a row beyond the end sums to zero as well
        sums += tl.sum(weight, 1)
        acc = tl.dot(weight, load_rows(concepts, j, there, own, hidden), acc, input_precision=PRECISION)
    acc = acc / tl.where(sums == 0.0, 1.0, sums)[:, None]
    tl.store(out + i[:, None] * hidden + own[None, :], acc, real[:, None] & (own < hidden)[None, :])
    if tl.program_id(1) == 0:
        tl.store(total + i, sums, real)


@triton.jit
def _weights(product, left, right, sums, total):
    """(weights [ROWS, OTHERS], cosines, reciprocals of what they were divided by)."""
    reciprocal = 1.0 / (left[:, None] * right[None, :] + EPS)
    cosine = product * reciprocal
    live = (sums != 0.0)[None, :]
    return tl.where(live, tl.exp(cosine) / tl.where(total == 0.0, 1.0, total)[:, None], 0.0), cosine, reciprocal


@triton.jit
def _backward_stocks(grad, x, concepts, offsets, concept_offsets, out, total, dx, norm, towards, days, rows, members, hidden,
                     MANY: tl.constexpr, ROWS: tl.constexpr, OTHERS: tl.constexpr, COLUMNS: tl.constexpr,
                     PRECISION: tl.constexpr):  # fmt: skip
    """dx of a tile of stocks; leaves |x_i| and grad_i . out_i for the concepts' pass."""
    day, _begin, end, start = day_tile(offsets, days, rows, ROWS, MANY)
    i = start + tl.arange(0, ROWS)
    real = i < end
    own = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first, last = day_range(concept_offsets, day, members, MANY)
    dot = row_dots(grad, out, i, real, hidden, ROWS)
    length = tl.sqrt(row_dots(x, x, i, real, hidden, ROWS))
    sums = tl.load(total + i, real, 1.0)
    dnorm = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(first, last, OTHERS):
        j = begin + tl.arange(0, OTHERS)
        there = j < last
        product, along, right, rowsum = _both_products(x, grad, i, real, concepts, j, there, hidden, PRECISION, ROWS, OTHERS)
        weight, cosine, reciprocal = _weights(product, length, right, rowsum, sums)
        dproduct = weight * (along - dot[:, None]) * reciprocal
        dnorm -= tl.sum(dproduct * cosine * right[None, :], 1)
        acc = tl.dot(factor(dproduct, PRECISION), load_rows(concepts, j, there, own, hidden), acc, input_precision=PRECISION)
    acc += per_length(dnorm, length)[:, None] * load_rows(x, i, real, own, hidden)
    tl.store(dx + i[:, None] * hidden + own[None, :], acc, real[:, None] & (own < hidden)[None, :])
    if tl.program_id(1) == 0:
        tl.store(norm + i, length, real)
        tl.store(towards + i, dot, real)


@triton.jit
def _backward_concepts(grad, x, concepts, offsets, concept_offsets, total, norm, towards, dconcepts, days, rows, members, hidden,
                       MANY: tl.constexpr, ROWS: tl.constexpr, OTHERS: tl.constexpr, COLUMNS: tl.constexpr,
                       PRECISION: tl.constexpr):  # fmt: skip
    """The gradients of a tile of ROWS concepts."""
    day, _begin, end, start = day_tile(concept_offsets, days, members, ROWS, MANY)
    j = start + tl.arange(0, ROWS)
    there = j < end
    own = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first, last = day_range(offsets, day, rows, MANY)
    length = tl.zeros((ROWS,), tl.float32)  # found on the way; of a day without stocks nobody asks
    rowsum = tl.zeros((ROWS,), tl.float32)
    dnorm = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(first, last, OTHERS):
        i = begin + tl.arange(0, OTHERS)
        real = i < last
        product, along, length, rowsum = _both_products(x, grad, i, real, concepts, j, there, hidden, PRECISION, OTHERS, ROWS)
        left = tl.load(norm + i, real, 0.0)
        weight, cosine, reciprocal = _weights(product, left, length, rowsum, tl.load(total + i, real, 1.0))
        weight = tl.where(real[:, None], weight, 0.0)
        dproduct = weight * (along - tl.load(towards + i, real, 0.0)[:, None]) * reciprocal
        dnorm -= tl.sum(dproduct * cosine * left[:, None], 0)
        acc = tl.dot(tl.trans(factor(dproduct, PRECISION)), load_rows(x, i, real, own, hidden), acc, input_precision=PRECISION)
        acc = tl.dot(tl.trans(factor(weight, PRECISION)), load_rows(grad, i, real, own, hidden), acc, input_precision=PRECISION)
    acc += per_length(dnorm, length)[:, None] * load_rows(concepts, j, there, own, hidden)
    acc = tl.where((rowsum != 0.0)[:, None], acc, 0.0)  # whoever takes no part has no gradient, whatever the stocks hold
    tl.store(dconcepts + j[:, None] * hidden + own[None, :], acc, there[:, None] & (own < hidden)[None, :])


def _days(n: int, offsets: Tensor | None, m: int, concept_offsets: Tensor | None) -> tuple[Days, Days]:
    """Of stocks and concepts; where one side is one day without saying so, so is the other."""
    if offsets is None or concept_offsets is None:
        offsets = concept_offsets = None
    return Days(n, offsets), Days(m, concept_offsets)


def concept_attention(x: Tensor, concepts: Tensor, offsets: Tensor | None, concept_offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    """(out [N, H], the softmax's denominators [N])."""
    x, concepts = dense(x, concepts)
    (n, hidden), m = x.shape, concepts.shape[0]
    out, total = torch.empty_like(x), x.new_empty(n, dtype=statistics_dtype(x))
    if out.numel() == 0:
        return out, total.zero_()
    days, theirs = _days(n, offsets, m, concept_offsets)
    tiling = blocks(x)
    _forward[(days.slots(ROWS), triton.cdiv(hidden, tiling["COLUMNS"]))](
        x, concepts, days.given(x), theirs.given(x), out, total, days.count, n, m, hidden, MANY=days.many, ROWS=ROWS, OTHERS=OTHERS,
        **tiling,
    )  # fmt: skip
    return out, total


def concept_attention_backward(
    grad: Tensor, x: Tensor, concepts: Tensor, offsets: Tensor | None, concept_offsets: Tensor | None, out: Tensor, total: Tensor
) -> tuple[Tensor, Tensor]:
    """(dx [N, H], dconcepts [M, H])."""
    grad, x, concepts, out, total = dense(grad, x, concepts, out, total)
    (n, hidden), m = x.shape, concepts.shape[0]
    dx, dconcepts = torch.empty_like(x), torch.empty_like(concepts)
    if n * hidden == 0:
        return dx, dconcepts.zero_()
    days, theirs = _days(n, offsets, m, concept_offsets)
    tiling = blocks(x)
    norm, towards = torch.empty_like(total), torch.empty_like(total)
    columns = triton.cdiv(hidden, tiling["COLUMNS"])
    where = (days.given(x), theirs.given(x))
    common = {"MANY": days.many, "ROWS": ROWS, "OTHERS": OTHERS, **tiling}
    _backward_stocks[(days.slots(ROWS), columns)](
        grad, x, concepts, *where, out, total, dx, norm, towards, days.count, n, m, hidden, **common
    )
    if m:
        _backward_concepts[(theirs.slots(ROWS), columns)](
            grad, x, concepts, *where, total, norm, towards, dconcepts, days.count, n, m, hidden, **common
        )
    return dx, dconcepts


_SIZES = {name: "i32" for name in ("days", "rows", "members", "hidden")}
_OFFSETS = {"offsets": "*i64", "concept_offsets": "*i64"}
_TILE = {"ROWS": ROWS, "OTHERS": OTHERS}
_WIDE = {"COLUMNS": 64, "MANY": True, **_TILE}


def _halves(*names: str) -> dict[str, str]:
    return {name: "*bf16" for name in names}


AOT = [
    (
        _forward,
        {**pointers("x", "concepts", "out", "total"), **_OFFSETS, **_SIZES},
        {"COLUMNS": 64, "PRECISION": "ieee", "MANY": False, **_TILE},
        WARPS,
    ),
    (
        _forward,
        {**_halves("x", "concepts", "out"), **pointers("total"), **_OFFSETS, **_SIZES},
        {"PRECISION": "tf32", **_WIDE},
        WARPS,
    ),
    (
        _backward_stocks,
        {**pointers("grad", "x", "concepts", "out", "total", "dx", "norm", "towards"), **_OFFSETS, **_SIZES},
        {"PRECISION": "ieee", **_WIDE},
        WARPS,
    ),
    (
        _backward_concepts,
        {**pointers("grad", "x", "concepts", "total", "norm", "towards", "dconcepts"), **_OFFSETS, **_SIZES},
        {"PRECISION": "ieee", **_WIDE},
        WARPS,
    ),
]
