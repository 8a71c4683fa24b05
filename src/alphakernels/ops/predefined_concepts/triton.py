"""Predefined concepts on the GPU: a program owns a tile of concepts of one day, or of stocks in the backward pass, and walks the other side
tile by tile. A tile of membership becomes shares in registers; neither the gathered rows nor the shares are ever stored.

Products are made as in concept attention.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .._days_triton import Days, day_range, day_tile
from ..concept_attention.triton import OTHERS, ROWS, WARPS, blocks, factor, load_rows
from ..ghost_batch_norm.op import statistics_dtype
from ..ghost_batch_norm.triton import dense, pointers


@triton.jit
def _members(membership, rows, i, real, k, there, concepts, CHOSEN: tl.constexpr):
    """[stocks, concepts] in float32, zero where there is none."""
    row = i
    if CHOSEN:
        row = tl.load(rows + i, real, 0)
    at = row[:, None] * concepts + k[None, :]
    return tl.load(membership + at, real[:, None] & there[None, :], 0.0).to(tl.float32)


@triton.jit
def _forward(x, membership, offsets, rows, out, size, tiles, stocks, concepts, hidden, MANY: tl.constexpr, CHOSEN: tl.constexpr,
             ROWS: tl.constexpr, OTHERS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """A tile of ROWS concepts of a day."""
    slot = tl.program_id(0).to(tl.int64)
    day = slot // tiles
    k = (slot % tiles) * ROWS + tl.arange(0, ROWS)
    there = k < concepts
    own = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first, last = day_range(offsets, day, stocks, MANY)
    sums = tl.zeros((ROWS,), tl.float32)
    for begin in range(first, last, OTHERS):
        i = begin + tl.arange(0, OTHERS)
        sums += tl.sum(_members(membership, rows, i, i < last, k, there, concepts, CHOSEN), 0)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(first, last, OTHERS):
        i = begin + tl.arange(0, OTHERS)
        real = i < last
        member = _members(membership, rows, i, real, k, there, concepts, CHOSEN)
        share = factor(member / (sums[None, :] * member + 1.0), PRECISION)
        acc = tl.dot(tl.trans(share), load_rows(x, i, real, own, hidden), acc, input_precision=PRECISION)
    at = day * concepts + k
    tl.store(out + at[:, None] * hidden + own[None, :], acc, there[:, None] & (own < hidden)[None, :])
    if tl.program_id(1) == 0:
        tl.store(size + at, sums, there)


@triton.jit
def _backward(grad, membership, offsets, rows, size, dx, days, stocks, concepts, hidden, MANY: tl.constexpr, CHOSEN: tl.constexpr,
              ROWS: tl.constexpr, OTHERS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """dx of a tile of ROWS stocks of a day."""
    day, _begin, end, start = day_tile(offsets, days, stocks, ROWS, MANY)
    i = start + tl.arange(0, ROWS)
    real = i < end
    own = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(0, concepts, OTHERS):
        k = begin + tl.arange(0, OTHERS)
        there = k < concepts
        member = _members(membership, rows, i, real, k, there, concepts, CHOSEN)
        share = factor(member / (tl.load(size + day * concepts + k, there, 0.0)[None, :] * member + 1.0), PRECISION)
        acc = tl.dot(share, load_rows(grad, day * concepts + k, there, own, hidden), acc, input_precision=PRECISION)
    tl.store(dx + i[:, None] * hidden + own[None, :], acc, real[:, None] & (own < hidden)[None, :])


def predefined_concepts(x: Tensor, membership: Tensor, offsets: Tensor | None, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """(concepts [days * K, H], their sizes [days, K])."""
    x, membership, rows = dense(x, membership, rows)
    (n, hidden), concepts = x.shape, membership.shape[1]
    days, tiles = Days(n, offsets), triton.cdiv(concepts, ROWS)
    out, size = x.new_empty(days.count * concepts, hidden), x.new_empty(days.count, concepts, dtype=statistics_dtype(x))
    if out.numel() == 0:
        return out, size.zero_()
    tiling = blocks(x)
    _forward[(days.count * tiles, triton.cdiv(hidden, tiling["COLUMNS"]))](
        x, membership, days.given(x), x if rows is None else rows, out, size, tiles, n, concepts, hidden, MANY=days.many,
        CHOSEN=rows is not None, ROWS=ROWS, OTHERS=OTHERS, **tiling,
    )  # fmt: skip
    return out, size


def predefined_concepts_backward(grad: Tensor, membership: Tensor, offsets: Tensor | None, rows: Tensor | None, size: Tensor) -> Tensor:
    """dx [N, H]."""
    grad, membership, rows, size = dense(grad, membership, rows, size)
    n, concepts, hidden = len(membership if rows is None else rows), membership.shape[1], grad.shape[1]
    dx = grad.new_empty(n, hidden)
    if dx.numel() == 0:
        return dx
    days, tiling = Days(n, offsets), blocks(grad)
    _backward[(days.slots(ROWS), triton.cdiv(hidden, tiling["COLUMNS"]))](
        grad, membership, days.given(grad), grad if rows is None else rows, size, dx, days.count, n, concepts, hidden, MANY=days.many,
        CHOSEN=rows is not None, ROWS=ROWS, OTHERS=OTHERS, **tiling,
    )  # fmt: skip
    return dx


_INDICES = {"offsets": "*i64", "rows": "*i64"}
_SIZES = {name: "i32" for name in ("stocks", "concepts", "hidden")}
_TILE = {"ROWS": ROWS, "OTHERS": OTHERS, "COLUMNS": 64}
AOT = [
    (
        _forward,
        {**pointers("x", "membership", "out", "size"), **_INDICES, "tiles": "i32", **_SIZES},
        {"PRECISION": "ieee", "MANY": False, "CHOSEN": True, **_TILE},
        WARPS,
    ),
    (
        _forward,
        {**{name: "*bf16" for name in ("x", "membership", "out")}, **pointers("size"), **_INDICES, "tiles": "i32", **_SIZES},
        {"PRECISION": "tf32", "MANY": True, "CHOSEN": False, **_TILE},
        WARPS,
    ),
    (
        _backward,
        {**pointers("grad", "membership", "size", "dx"), **_INDICES, "days": "i32", **_SIZES},
        {"PRECISION": "ieee", "MANY": True, "CHOSEN": True, **_TILE},
        WARPS,
    ),
]
