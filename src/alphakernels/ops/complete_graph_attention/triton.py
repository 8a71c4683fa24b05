"""Complete-graph attention on the GPU: the algorithm of op.py, its two sums a stock found in one of two ways.

By sorting: keys of (day, score), one stable sort of the scores of both sides, the sums of the sorted list (sorted_sums_triton.py), and
a binary search in it for each stock: O(N log N + N H), a sort and eleven launches whatever N is.
By pairs: a program holds a tile of stocks and walks all others of the day. The weights of a pair are one number of the neighbour,
exp(t_j - t*) or exp(slope (t_j - t*)), chosen by a comparison: no exponential a pair, nothing N x N stored, one launch forward, two
back, but 8 N^2 H floating-point operations in all.

Which of them is a rule on the mean size of a day, which the host knows without waiting for the device. At 2,048 stocks and H = 64
the pairs cost 2.1 GFLOP forward and back, tens of microseconds of a GPU's float32 units, about what the launches of the other way
take before they have done anything; at 300 they cost a fiftieth of that. Beyond 2,048 the pairs grow with the square.

In the backward pass the sides change places: the list is of s, weighted by 1 / Z_i and c_i / Z_i, and the rows are the gradients.
The sums of the list are of doubles. No atomics: every number is summed by one program in an order fixed by the sizes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._days_triton import Days, day_tile
from ..concept_attention.triton import factor, load_rows, row_products
from ..ghost_batch_norm.triton import dense, pointers
from . import sorted_sums_triton
from .sorted_sums_triton import SortedSums

ALL_PAIRS = 2048  # mean stocks of a day up to which all pairs are walked
QUERIES = 16  # stocks of a program: of 300 stocks there are 19 programs, of 2,048 as many as a GPU has processors
LIST = 32  # neighbours taken at once
WARPS = 8  # four would spill
TILE = 128  # stocks of the programs that look at each by itself


@triton.jit
def _make_keys(s, t, offsets, keys, days, rows, MANY: tl.constexpr, TILE: tl.constexpr):
    """int64 keys [2N] that rise as (side, day, falling score): the bits of a float32, made to rise with it; NaN comes first."""
    day, _begin, end, start = day_tile(offsets, days, rows, TILE, MANY)
    row = start + tl.arange(0, TILE)
    there = row < end
    for side in tl.static_range(2):
        score = tl.load((t if side else s) + row, there, 0.0).to(tl.float32)
        bits = score.to(tl.int32, bitcast=True)
        rising = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        rising = tl.where(score == score, rising, 0x7FFFFFFF)
        tl.store(keys + side * rows + row, ((day + side * days) << 32) + (2147483647 - rising.to(tl.int64)), there)


@triton.jit
def _or_nan(top):
    """t* of a day, NaN where the softmax has no value: t holds a NaN or +inf, or is -inf throughout."""
    return tl.where(tl.abs(top) < float("inf"), top, float("nan"))


@triton.jit
def _largest(t, by_t, begin, end, SORTED: tl.constexpr, TILE: tl.constexpr):
    """t* of a day."""
    if SORTED:
        top = tl.load(t + tl.load(by_t + begin).to(tl.int64)).to(tl.float32)
    else:
        tops = tl.full((TILE,), -float("inf"), tl.float32)
        bad = tl.zeros((TILE,), tl.int32)
        for j in range(begin, end, TILE):
            row = j + tl.arange(0, TILE)
            score = tl.load(t + row, row < end, -float("inf")).to(tl.float32)
            tops = tl.maximum(tops, score)
            bad |= (score != score).to(tl.int32)
        top = tl.where(tl.max(bad, 0) > 0, float("nan"), tl.max(tops, 0))
    return _or_nan(top)


@triton.jit
def _weigh(t, index, offsets, order, score, steep, flat, days, rows, negative_slope, MANY: tl.constexpr, TILE: tl.constexpr):
    """By place: the order of both sides, t sorted, exp(t_j - t*) and exp(negative_slope (t_j - t*))."""
    _day, begin, end, start = day_tile(offsets, days, rows, TILE, MANY)
    if start < end:
        place = start + tl.arange(0, TILE)
        there = place < end
        by_t = tl.maximum(tl.load(index + rows + place, there, rows) - rows, 0)
        tl.store(order + place, tl.minimum(tl.load(index + place, there, 0), rows - 1).to(tl.int32), there)
        tl.store(order + rows + place, by_t.to(tl.int32), there)
        top = _or_nan(tl.load(t + tl.maximum(tl.load(index + rows + begin) - rows, 0)).to(tl.float32))
        value = tl.load(t + by_t, there, 0.0).to(tl.float32)
        tl.store(score + place, value, there)
        tl.store(steep + place, tl.exp(value - top), there)
        tl.store(flat + place, tl.exp(negative_slope * (value - top)), there)


@triton.jit
def _split(score, query, begin, end):
    """For each query the first place of [begin, end) whose score does not exceed -query; scores fall."""
    low = tl.zeros(query.shape, tl.int64) + begin
    high = tl.zeros(query.shape, tl.int64) + end
    left = end - begin
    while left > 0:
        middle = (low + high) // 2
        open = low < high
        above = tl.load(score + middle, open, 0.0) > -query
        low = tl.where(open & above, middle + 1, low)
        high = tl.where(open & (above == 0), middle, high)
        left = left // 2
    return low


@triton.jit
def _look_up(head, tail, place, begin, end, column, hidden, there):
    """Sums of the list before `place` and from it on, [QUERIES, COLUMNS], and those of its last column."""
    width = hidden + 1
    wanted = (column < hidden)[None, :]
    ahead = there & (place > begin)
    behind = there & (place < end)
    first = tl.load(head + (place - 1)[:, None] * width + column[None, :], ahead[:, None] & wanted, 0.0)
    last = tl.load(tail + place[:, None] * width + column[None, :], behind[:, None] & wanted, 0.0)
    more = tl.load(head + (place - 1) * width + hidden, ahead, 0.0)
    return first, last, more, tl.load(tail + place * width + hidden, behind, 0.0)


@triton.jit
def _walk(t, h, query, begin, end, column, hidden, top, negative_slope, QUERIES: tl.constexpr, LIST: tl.constexpr,
          COLUMNS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The same by going through all pairs."""
    first = tl.zeros((QUERIES, COLUMNS), tl.float32)
    last = tl.zeros((QUERIES, COLUMNS), tl.float32)
    positive = tl.zeros((QUERIES,), tl.float32)
    others = tl.zeros((QUERIES,), tl.float32)
    for low in range(begin, end, LIST):
        j = low + tl.arange(0, LIST)
        there = j < end
        value = tl.load(t + j, there, 0.0).to(tl.float32)
        steep = factor(tl.where(there, tl.exp(value - top), 0.0), PRECISION)
        flat = factor(tl.where(there, tl.exp(negative_slope * (value - top)), 0.0), PRECISION)
        above = value[None, :] > -query[:, None]
        a = tl.where(above, steep[None, :], 0.0)
        b = tl.where(above, 0.0, flat[None, :])
        positive += tl.sum(a, 1)
        others += tl.sum(b, 1)
        rows = load_rows(h, j, there, column, hidden)
        first = tl.dot(a, rows, first, input_precision=PRECISION)
        last = tl.dot(b, rows, last, input_precision=PRECISION)
    return first, last, positive, others


@triton.jit
def _attend(s, t, h, offsets, order, score, head, tail, out, slope, scale, days, rows, hidden, negative_slope, SORTED: tl.constexpr,
            KEEP: tl.constexpr, MANY: tl.constexpr, QUERIES: tl.constexpr, LIST: tl.constexpr, TILE: tl.constexpr,
            COLUMNS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """out, d out_i / d s_i, and by place 1 / Z_i and c_i / Z_i."""
    _day, begin, end, start = day_tile(offsets, days, rows, QUERIES, MANY)
    if start < end:
        place = start + tl.arange(0, QUERIES)
        there = place < end
        if SORTED:
            row = tl.load(order + place, there, 0).to(tl.int64)
        else:
            row = place
            tl.store(order + place, place.to(tl.int32), there)
            tl.store(order + rows + place, place.to(tl.int32), there)
        query = tl.load(s + row, there, 0.0).to(tl.float32)
        top = _largest(t, order + rows, begin, end, SORTED, TILE)
        x = query + top
        c = tl.exp(tl.where(x > 0.0, (negative_slope - 1.0) * x, 0.0))
        if SORTED:
            split = _split(score, query, begin, end)
        for k in range(0, hidden, COLUMNS):
            column = k + tl.arange(0, COLUMNS)
            if SORTED:
                first, last, positive, others = _look_up(head, tail, split, begin, end, column, hidden, there)
                first, last = first.to(tl.float32), last.to(tl.float32)
                positive, others = positive.to(tl.float32), others.to(tl.float32)
            else:
                first, last, positive, others = _walk(
                    t, h, query, begin, end, column, hidden, top, negative_slope, QUERIES, LIST, COLUMNS, PRECISION
                )
            one = tl.where(tl.abs(x) < float("inf"), 1.0 / tl.where(there, positive + c * others, 1.0), float("nan"))
            first = first * one[:, None]
            last = last * (c * one)[:, None]
            at = row[:, None] * hidden + column[None, :]
            mask = there[:, None] & (column < hidden)[None, :]
            tl.store(out + at, first + last, mask)
            if KEEP:
                # (1 - slope) p+ p- (mean of the first - mean of the others): zero where one side is empty.
                share, rest = positive * one, c * others * one
                tl.store(slope + at, (1.0 - negative_slope) * (rest[:, None] * first - share[:, None] * last), mask)
            if k == 0:
                tl.store(scale + place, one, there)
                tl.store(scale + rows + place, c * one, there)


@triton.jit
def _towards(grad, s, out, slope, order, ds, score, towards, rows, hidden, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """By place: s and g_i . out_i; and ds."""
    place = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = place < rows
    row = tl.load(order + place, there, 0).to(tl.int64)
    dot = tl.zeros((ROWS,), tl.float32)
    steepness = tl.zeros((ROWS,), tl.float32)
    for k in range(0, hidden, COLUMNS):
        column = k + tl.arange(0, COLUMNS)
        g = load_rows(grad, row, there, column, hidden)
        dot += tl.sum(g * load_rows(out, row, there, column, hidden), 1)
        steepness += tl.sum(g * load_rows(slope, row, there, column, hidden), 1)
    tl.store(score + place, tl.load(s + row, there, 0.0).to(tl.float32), there)
    tl.store(towards + place, dot, there)
    tl.store(ds + row, steepness, there)


@triton.jit
def _distribute(t, h, offsets, order, score, head, tail, dt, dh, days, rows, hidden, negative_slope, MANY: tl.constexpr,
                QUERIES: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """dt and dh of a tile of neighbours, from the sums of the gradients by s."""
    _day, begin, end, start = day_tile(offsets, days, rows, QUERIES, MANY)
    if start < end:
        place = start + tl.arange(0, QUERIES)
        there = place < end
        row = tl.load(order + rows + place, there, 0).to(tl.int64)
        query = tl.load(t + row, there, 0.0).to(tl.float32)
        top = _largest(t, order + rows, begin, end, True, QUERIES)
        steep = tl.exp(query - top)
        flat = tl.exp(negative_slope * (query - top))
        split = _split(score, query, begin, end)
        steep_dot = tl.zeros((QUERIES,), tl.float64)
        flat_dot = tl.zeros((QUERIES,), tl.float64)
        for k in range(0, hidden, COLUMNS):
            column = k + tl.arange(0, COLUMNS)
            first, last, before, after = _look_up(head, tail, split, begin, end, column, hidden, there)
            own = load_rows(h, row, there, column, hidden)
            steep_dot += tl.sum(first * own, 1) - tl.where(k == 0, before, 0.0)
            flat_dot += tl.sum(last * own, 1) - tl.where(k == 0, after, 0.0)
            at = row[:, None] * hidden + column[None, :]
            sums = steep[:, None] * first.to(tl.float32) + flat[:, None] * last.to(tl.float32)
            tl.store(dh + at, sums, there[:, None] & (column < hidden)[None, :])
        tl.store(dt + row, (steep * steep_dot + negative_slope * flat * flat_dot).to(tl.float32), there)


@triton.jit
def _distribute_by_pairs(grad, s, t, h, offsets, towards, scale, dt, dh, days, rows, hidden, negative_slope, MANY: tl.constexpr,
                         QUERIES: tl.constexpr, LIST: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr,
                         PRECISION: tl.constexpr):  # fmt: skip
    """The same by going through all pairs: P_ij = steep_j / Z_i or flat_j c_i / Z_i, and g_i . h_j - g_i . out_i cancels pair by pair."""
    _day, begin, end, start = day_tile(offsets, days, rows, QUERIES, MANY)
    j = start + tl.arange(0, QUERIES)
    there = j < end
    query = tl.load(t + j, there, 0.0).to(tl.float32)
    top = _largest(t, t, begin, end, False, TILE)
    steep = tl.exp(query - top)
    flat = tl.exp(negative_slope * (query - top))
    own = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    dscore = tl.zeros((QUERIES,), tl.float32)
    acc = tl.zeros((QUERIES, COLUMNS), tl.float32)
    for low in range(begin, end, LIST):
        i = low + tl.arange(0, LIST)
        real = i < end
        above = tl.load(s + i, real, 0.0).to(tl.float32)[None, :] > -query[:, None]
        first = tl.load(scale + i, real, 0.0).to(tl.float32)
        last = tl.load(scale + rows + i, real, 0.0).to(tl.float32)
        weight = tl.where(above, steep[:, None] * first[None, :], flat[:, None] * last[None, :])
        product = row_products(h, j, there, grad, i, real, hidden, PRECISION, QUERIES, LIST)
        away = weight * (product - tl.load(towards + i, real, 0.0)[None, :])
        dscore += tl.sum(tl.where(above, away, negative_slope * away), 1)
        acc = tl.dot(factor(weight, PRECISION), load_rows(grad, i, real, own, hidden), acc, input_precision=PRECISION)
    tl.store(dh + j[:, None] * hidden + own[None, :], acc, there[:, None] & (own < hidden)[None, :])
    if tl.program_id(1) == 0:
        tl.store(dt + j, dscore, there)


def _sorted(days: Days) -> bool:
    return days.rows > ALL_PAIRS * days.count


def _tiling(h: Tensor) -> dict:
    return {"QUERIES": QUERIES, "COLUMNS": max(16, min(64, triton.next_power_of_2(h.shape[1]))), "num_warps": WARPS}


def _pairs(h: Tensor) -> dict:
    return {"LIST": LIST, "TILE": TILE, "PRECISION": "ieee" if h.dtype == torch.float32 else "tf32"}  # as in concept_attention


def complete_graph_attention(
    s: Tensor, t: Tensor, h: Tensor, offsets: Tensor | None, negative_slope: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out [N, H], d out_i / d s_i [N, H] if kept, by place 1 / Z_i and c_i / Z_i [2, N], the rows by place of s and of t [2, N])."""
    s, t, h = dense(s, t, h)
    (n, hidden), days = h.shape, Days(h.shape[0], offsets)
    out, slope = torch.empty_like(h), h.new_empty(n if keep else 0, hidden)
    scale, order = h.new_empty((2, n), dtype=torch.float64), h.new_zeros((2, n), dtype=torch.int32)
    if out.numel() == 0:
        return out, slope, scale.zero_(), order.zero_()
    by_sorting, where = _sorted(days), days.given(h)
    score, sums = out, SortedSums(out, out)  # not read
    if by_sorting:
        tile = {"MANY": days.many, "TILE": TILE, "num_warps": 4}
        programs = (days.slots(TILE),)
        keys = h.new_empty(2 * n, dtype=torch.int64)
        _make_keys[programs](s, t, where, keys, days.count, n, **tile)
        index = torch.sort(keys, stable=True).indices
        score, steep, flat = (h.new_empty(n, dtype=torch.float32) for _ in range(3))
        _weigh[programs](t, index, where, order, score, steep, flat, days.count, n, negative_slope, **tile)
        sums = SortedSums.of(h, order[1], steep, flat, None, days)
    _attend[(days.slots(QUERIES),)](
        s, t, h, where, order, score, sums.head, sums.tail, out, slope, scale, days.count, n, hidden, negative_slope,
        SORTED=by_sorting, KEEP=keep, MANY=days.many, **_tiling(h), **_pairs(h),
    )  # fmt: skip
    return out, slope, scale, order


def complete_graph_attention_backward(
    grad: Tensor, s: Tensor, t: Tensor, h: Tensor, offsets: Tensor | None, negative_slope: float, out: Tensor, slope: Tensor,
    scale: Tensor, order: Tensor
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(ds, dt [N], dh [N, H])."""
    grad, s, t, h, out, slope, scale, order = dense(grad, s, t, h, out, slope, scale, order)
    (n, hidden), days = h.shape, Days(h.shape[0], offsets)
    ds, dt, dh = torch.empty_like(s), torch.empty_like(t), torch.empty_like(h)
    if dh.numel() == 0:
        return ds.zero_(), dt.zero_(), dh
    tiling, where = _tiling(h), days.given(h)
    score, towards = (h.new_empty(n, dtype=torch.float32) for _ in range(2))
    _towards[(triton.cdiv(n, QUERIES),)](
        grad, s, out, slope, order, ds, score, towards, n, hidden, ROWS=QUERIES, COLUMNS=tiling["COLUMNS"], num_warps=4
    )
    if _sorted(days):
        sums = SortedSums.of(grad, order[0], scale[0], scale[1], towards, days)
        _distribute[(days.slots(QUERIES),)](
            t, h, where, order, score, sums.head, sums.tail, dt, dh, days.count, n, hidden, negative_slope, MANY=days.many, **tiling
        )
    else:
        _distribute_by_pairs[(days.slots(QUERIES), triton.cdiv(hidden, tiling["COLUMNS"]))](
            grad, s, t, h, where, towards, scale, dt, dh, days.count, n, hidden, negative_slope, MANY=days.many, **tiling, **_pairs(h)
        )
    return ds, dt, dh


_SIZES = {"days": "i32", "rows": "i32", "hidden": "i32", "negative_slope": "fp32", "offsets": "*i64", "order": "*i32"}
_TILE = {"QUERIES": QUERIES, "COLUMNS": 64}
_PAIRS = {"LIST": LIST, "TILE": TILE, "PRECISION": "ieee"}
_DOUBLES = {name: "*fp64" for name in ("scale", "head", "tail")}
_FORWARD = {**pointers("s", "t", "h", "score", "out", "slope"), **_DOUBLES, **_SIZES}
_BACKWARD = {**pointers("t", "h", "score", "dt", "dh"), **_DOUBLES, **_SIZES}
AOT = [
    *sorted_sums_triton.AOT,
    (
        _make_keys,
        {**pointers("s", "t"), "offsets": "*i64", "keys": "*i64", "days": "i32", "rows": "i32"},
        {"MANY": True, "TILE": TILE},
        4,
    ),
    (
        _weigh,
        {**pointers("t", "score", "steep", "flat"), "index": "*i64", **{k: v for k, v in _SIZES.items() if k != "hidden"}},
        {"MANY": True, "TILE": TILE},
        4,
    ),
    (_attend, _FORWARD, {"SORTED": True, "KEEP": True, "MANY": True, **_TILE, **_PAIRS}, WARPS),
    (_attend, _FORWARD, {"SORTED": False, "KEEP": True, "MANY": False, **_TILE, **_PAIRS}, WARPS),
    (
        _attend,
        {**_FORWARD, "s": "*bf16", "t": "*bf16", "h": "*bf16", "out": "*bf16"},
        {"SORTED": False, "KEEP": False, "MANY": True, **_TILE, **_PAIRS, "PRECISION": "tf32"},
        WARPS,
    ),
    (
        _towards,
        {**pointers("grad", "s", "out", "slope", "ds", "score", "towards"), "order": "*i32", "rows": "i32", "hidden": "i32"},
        {"ROWS": QUERIES, "COLUMNS": 64},
        4,
    ),
    (_distribute, {k: v for k, v in _BACKWARD.items() if k != "scale"}, {"MANY": True, **_TILE}, WARPS),
    (
        _distribute_by_pairs,
        {**pointers("grad", "s", "t", "h", "towards", "dt", "dh"), "scale": "*fp64", **{k: v for k, v in _SIZES.items() if k != "order"}},
        {"MANY": True, **_TILE, **_PAIRS},
        WARPS,
    ),
]
