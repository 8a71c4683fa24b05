"""Hidden concepts on the GPU. A program finds the neighbours of a tile of stocks, all similarities passing through its registers; one
index and one value a stock remain. Sorted by whom they chose, the stocks that chose a tile of concepts lie side by side: the sums over
them are products with a [concepts, stocks] tile of one value a column, in a fixed order, without atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._days_triton import Days, day_tile
from ..concept_attention.triton import DEPTH, EPS, OTHERS, ROWS, WARPS, blocks, cosines, load_rows, per_length, row_dots
from ..ghost_batch_norm.op import statistics_dtype
from ..ghost_batch_norm.triton import aligned, dense, pointers


@triton.jit
def _choose(x, offsets, value, choice, days, rows, hidden, MANY: tl.constexpr, ROWS: tl.constexpr, OTHERS: tl.constexpr,
            COLUMNS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The most similar other stock of each, the first where there are equals; none where no similarity is positive."""
    _day, first, last, start = day_tile(offsets, days, rows, ROWS, MANY)
    i = start + tl.arange(0, ROWS)
    real = i < last
    best = tl.zeros((ROWS,), tl.float32)  # what a similarity must exceed
    chosen = tl.full((ROWS,), -1, tl.int64)
    broken = 0
    for begin in range(first, last, OTHERS):
        j = begin + tl.arange(0, OTHERS)
        there = j < last
        product, left, right, _sums, bad = cosines(x, i, real, x, j, there, hidden, PRECISION, ROWS, OTHERS)
        broken |= tl.max(bad, 0)
        cosine = product / (left[:, None] * right[None, :] + EPS)
        cosine = tl.where(there[None, :] & (i[:, None] != j[None, :]), cosine, 0.0)
        top = tl.max(cosine, 1)
        where = tl.min(tl.where(cosine == top[:, None], j[None, :], rows), 1)
        chosen = tl.where(top > best, where, chosen)
        best = tl.maximum(best, top)
    # A day that is not finite throughout: NaN, everybody with the first.
    tl.store(value + i, tl.where(broken > 0, float("nan"), best), real)
    tl.store(choice + i, tl.where(broken > 0, first, chosen).to(tl.int32), real)


@triton.jit
def _before(keys, n, key):
    """How many of the n sorted keys are below `key`."""
    low = key * 0
    high = low + n
    while low < high:
        middle = (low + high) // 2
        below = tl.load(keys + middle) < key
        low = tl.where(below, middle + 1, low)
        high = tl.where(below, high, middle)
    return low


@triton.jit
def _gather(x, value, keys, order, concepts, offsets, days, rows, hidden, MANY: tl.constexpr, ROWS: tl.constexpr,
            OTHERS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Concepts from their members, for the choices in order: keys[p] = choice[order[p]]."""
    _day, _begin, end, start = day_tile(offsets, days, rows, ROWS, MANY)
    j = start + tl.arange(0, ROWS)
    there = j < end
    own = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    square = row_dots(x, x, j, there, hidden, ROWS)
    members = tl.zeros((ROWS,), tl.int32)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    stop = _before(keys, rows, tl.minimum(start + ROWS, end))
    for begin in range(_before(keys, rows, start), stop, OTHERS):
        place = begin + tl.arange(0, OTHERS)
        here = place < stop
        i = tl.load(order + place, here, 0)
        mine = j[:, None] == tl.load(keys + place, here, -1)[None, :]
        members += tl.sum(mine.to(tl.int32), 1)
        link = tl.where(mine, tl.load(value + i, here, 0.0)[None, :], 0.0)
        acc = tl.dot(link, load_rows(x, i, here, own, hidden), acc, input_precision="ieee")
    itself = tl.where(members > 0, square / (square + EPS), 0.0)
    acc += itself[:, None] * load_rows(x, j, there, own, hidden)
    worth = tl.load(value + j, there, 0.0)
    acc = tl.where((worth != worth)[:, None], float("nan"), acc)
    tl.store(concepts + j[:, None] * hidden + own[None, :], acc, there[:, None] & (own < hidden)[None, :])


@triton.jit
def _measure(grad, x, choice, norm, itself, dproduct, rows, hidden, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Of each stock: its norm, x_i . grad_i, and the gradient of x_i . x_c, c its choice."""
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = i < rows
    c = tl.load(choice + i, real, -1)
    chose = c >= 0
    c = tl.where(chose, c, 0).to(tl.int64)
    square = tl.zeros((ROWS,), tl.float32)
    theirs = tl.zeros((ROWS,), tl.float32)
    own = tl.zeros((ROWS,), tl.float32)
    dvalue = tl.zeros((ROWS,), tl.float32)
    for k in range(0, hidden, DEPTH):
        column = k + tl.arange(0, DEPTH)
        a = load_rows(x, i, real, column, hidden)
        b = load_rows(x, c, chose, column, hidden)
        square += tl.sum(a * a, 1)
        theirs += tl.sum(b * b, 1)
        own += tl.sum(a * load_rows(grad, i, real, column, hidden), 1)
        dvalue += tl.sum(a * load_rows(grad, c, chose, column, hidden), 1)
    length = tl.sqrt(square)
    tl.store(norm + i, length, real)
    tl.store(itself + i, own, real)
    tl.store(dproduct + i, tl.where(chose, dvalue / (length * tl.sqrt(theirs) + EPS), 0.0), real)


@triton.jit
def _backward(grad, x, value, choice, keys, order, norm, itself, dproduct, dx, offsets, days, rows, hidden, MANY: tl.constexpr,
              ROWS: tl.constexpr, OTHERS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """dx_j: as one that chose, as one that was chosen, and as its own member."""
    _day, _begin, end, start = day_tile(offsets, days, rows, ROWS, MANY)
    j = start + tl.arange(0, ROWS)
    there = j < end
    own = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    c = tl.load(choice + j, there, -1)
    chose = c >= 0
    c = tl.where(chose, c, 0).to(tl.int64)
    worth = tl.load(value + j, there, 0.0)
    product = tl.load(dproduct + j, there, 0.0)
    length = tl.load(norm + j, there, 0.0)
    acc = worth[:, None] * load_rows(grad, c, chose, own, hidden) + product[:, None] * load_rows(x, c, chose, own, hidden)
    dnorm = -product * worth * tl.load(norm + c, chose, 0.0)
    members = tl.zeros((ROWS,), tl.int32)
    stop = _before(keys, rows, tl.minimum(start + ROWS, end))
    for begin in range(_before(keys, rows, start), stop, OTHERS):
        place = begin + tl.arange(0, OTHERS)
        here = place < stop
        i = tl.load(order + place, here, 0)
        mine = j[:, None] == tl.load(keys + place, here, -1)[None, :]
        members += tl.sum(mine.to(tl.int32), 1)
        link = tl.load(dproduct + i, here, 0.0)
        shrink = link * tl.load(value + i, here, 0.0) * tl.load(norm + i, here, 0.0)
        dnorm -= tl.sum(tl.where(mine, shrink[None, :], 0.0), 1)
        acc = tl.dot(tl.where(mine, link[None, :], 0.0), load_rows(x, i, here, own, hidden), acc, input_precision="ieee")
    square = length * length + EPS
    mine = members > 0
    acc += tl.where(mine, length * length / square, 0.0)[:, None] * load_rows(grad, j, there, own, hidden)
    dnorm += tl.where(mine, tl.load(itself + j, there, 0.0) * 2.0 * length * EPS / (square * square), 0.0)
    acc += per_length(dnorm, length)[:, None] * load_rows(x, j, there, own, hidden)
    acc = tl.where((worth != worth)[:, None], float("nan"), acc)
    tl.store(dx + j[:, None] * hidden + own[None, :], acc, there[:, None] & (own < hidden)[None, :])


def hidden_concepts(x: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(concepts [N, H], each stock's largest similarity [N], and the row it chose or -1 [N])."""
    x = aligned(x)
    n, hidden = x.shape
    concepts, value = torch.empty_like(x), x.new_empty(n, dtype=statistics_dtype(x))
    choice = x.new_full((n,), -1, dtype=torch.int32)
    if concepts.numel() == 0:
        return concepts, value.zero_(), choice.fill_(-1)
    days, tiling = Days(n, offsets), blocks(x)
    common = {"MANY": days.many, "ROWS": ROWS, "OTHERS": OTHERS, **tiling}
    _choose[(days.slots(ROWS),)](x, days.given(x), value, choice, days.count, n, hidden, **common)
    keys, order = torch.sort(choice, stable=True)
    del common["PRECISION"]
    _gather[(days.slots(ROWS), triton.cdiv(hidden, tiling["COLUMNS"]))](
        x, value, keys, order, concepts, days.given(x), days.count, n, hidden, **common
    )
    return concepts, value, choice


def hidden_concepts_backward(grad: Tensor, x: Tensor, offsets: Tensor | None, value: Tensor, choice: Tensor) -> Tensor:
    """dx [N, H]."""
    grad, x, value, choice = dense(grad, x, value, choice)
    n, hidden = x.shape
    dx = torch.empty_like(x)
    if dx.numel() == 0:
        return dx
    days, tiling = Days(n, offsets), blocks(x)
    del tiling["PRECISION"]
    keys, order = torch.sort(choice, stable=True)
    norm, itself, dproduct = (torch.empty_like(value) for _ in range(3))
    _measure[(triton.cdiv(n, ROWS),)](grad, x, choice, norm, itself, dproduct, n, hidden, ROWS=ROWS, **tiling)
    _backward[(days.slots(ROWS), triton.cdiv(hidden, tiling["COLUMNS"]))](
        grad, x, value, choice, keys, order, norm, itself, dproduct, dx, days.given(x), days.count, n, hidden, MANY=days.many, ROWS=ROWS,
        OTHERS=OTHERS, **tiling,
    )  # fmt: skip
    return dx


_SIZES = {"days": "i32", "rows": "i32", "hidden": "i32", "offsets": "*i64"}
_SORTED = {"choice": "*i32", "keys": "*i32", "order": "*i64"}
_TILE = {"ROWS": ROWS, "COLUMNS": 64}
AOT = [
    (_choose, {**pointers("x", "value"), "choice": "*i32", **_SIZES}, {"MANY": True, "OTHERS": OTHERS, "PRECISION": "ieee", **_TILE}, WARPS),
    (
        _choose,
        {"x": "*bf16", "value": "*fp32", "choice": "*i32", **_SIZES},
        {"MANY": False, "OTHERS": OTHERS, "PRECISION": "tf32", "ROWS": ROWS, "COLUMNS": 64},
        WARPS,
    ),
    (_gather, {**pointers("x", "value", "concepts"), **_SORTED, **_SIZES}, {"MANY": True, "OTHERS": OTHERS, **_TILE}, WARPS),
    (_measure, {**pointers("grad", "x", "norm", "itself", "dproduct"), "choice": "*i32", "rows": "i32", "hidden": "i32"}, _TILE, WARPS),
    (
        _backward,
        {**pointers("grad", "x", "value", "norm", "itself", "dproduct", "dx"), **_SORTED, **_SIZES},
        {"MANY": True, "OTHERS": OTHERS, **_TILE},
        WARPS,
    ),
]
