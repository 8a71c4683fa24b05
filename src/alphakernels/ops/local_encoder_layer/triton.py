"""The encoder layer on the GPU: four kernels forward (convolution, attention, and all that follows it in one) around the plain
products, which are torch's.

The projection to queries, keys and values and its gradients, and those of the output projection and of the convolution's weight, are
GEMMs that cuBLAS runs at full speed and whose results other kernels need whole (attention reads every key of a sample, weight
gradients sum over all tokens): fusing the projection would save 6 d of the some 14 d elements a token that the forward pass moves,
next to 4 d f FLOPs of FFN, and would compute keys and values once a block of queries in place of once.

No atomics, and cuts that follow from sizes alone: the same bits run after run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from ..ghost_batch_norm.triton import aligned, dense, pointers
from . import reference
from .op import triton_limit
from .triton_attention import attend, attend_backward
from .triton_convolution import convolve
from .triton_ffn import feed_forward, feed_forward_backward, feed_forward_weights

CONVOLVED_ROWS = 64
PROGRAMS = 512  # of the pass over the FFN's weights: enough for the largest GPUs, each with some tiles of tokens to its sums


@dataclass(frozen=True)
class Tile:
    """Block sizes of the kernels that hold rows of d columns: token rows and hidden units of a tile, and warps."""

    rows: int
    units: int
    warps: int


# By the padded d: the forward kernel, the backward kernel, the weights' kernel. The largest that fit into 99 KB of shared memory and spill
# little, as ptxas reports them for sm_80: see `test_triton_aot`.
_TILES = {
    False: {  # float32
        32: ((64, 32, 8), (64, 32, 8), (32, 64, 8)),
        64: ((64, 32, 8), (64, 32, 8), (32, 64, 8)),
        128: ((32, 32, 8), (32, 16, 8), (16, 32, 8)),
        256: ((32, 16, 8), (16, 16, 8), (16, 16, 8)),
    },
    True: {  # bfloat16 and float16
        32: ((64, 64, 8), (64, 64, 8), (32, 64, 8)),
        64: ((64, 64, 8), (64, 64, 8), (32, 64, 8)),
        128: ((64, 64, 8), (32, 32, 8), (64, 32, 8)),
        256: ((32, 32, 8), (32, 16, 8), (16, 32, 8)),
        512: ((16, 16, 8), (16, 16, 8), (16, 16, 8)),
    },
}


def _tile(kernel: str, padded: int, half: bool) -> Tile:
    return Tile(*_TILES[half][max(32, padded)][("forward", "backward", "weights").index(kernel)])


# Steps of a block of attention, by padded width of a head: forward; backward where a head's scores are one tile; and where they are not.
_BLOCKS = {
    False: {16: (64, 64, 32), 32: (64, 64, 32), 64: (32, 64, 32), 128: (32, 32, 16), 256: (16, 16, 16)},
    True: {16: (64, 64, 64), 32: (64, 64, 64), 64: (64, 64, 32), 128: (64, 64, 32), 256: (32, 32, 32), 512: (16, 16, 16)},
}


def _warps(block: int) -> int:
    return 8 if block > 16 else 4


@dataclass(frozen=True)
class Blocks:
    """How attention is cut: `whole` says that the backward pass has a head's scores in one tile."""

    forward: int
    backward: int
    whole: bool
    h: int
    backward_warps: int

    @classmethod
    def of(cls, steps: int, head_width: int, half: bool, capability: int) -> Blocks:
        h, short = max(16, triton.next_power_of_2(head_width)), max(16, triton.next_power_of_2(steps))
        forward, whole, tiled = _BLOCKS[half][h]
        backward = min(whole, short) if steps <= whole else tiled
        # Products on plain float32 units hold their operands in registers. As Triton lays them out for 9.0 and later, the largest tile
        # takes twice the threads (8 warps spill 1224 bytes a thread at head width 64, 16 spill 264); for 8.0 it does not (0 and 376).
        wide = backward == 64 and not half and capability >= 9
        return cls(min(forward, short), backward, steps <= whole, h, 16 if wide else _warps(backward))


def _precision(x: Tensor) -> str:
    """As torch's own products in float32, which are the other half of the layer."""
    return "tf32" if x.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


class Layer:
    """One call's arguments as the kernels take them, and the passes that forward and backward share."""

    def __init__(self, x: Tensor, weights: list[Tensor], mask: Tensor | None, seed: Tensor | None, heads: int, dropout: float, eps: float):
        self.batch, self.steps, self.d = x.shape
        problem = triton_limit(self.d, x.dtype)
        if problem is not None:
            raise RuntimeError(f"local_encoder_layer: the triton kernel was asked for and cannot run: {problem}")
        self.x = aligned(x)
        self.w = dict(zip(reference.NAMES, dense(*weights), strict=False))
        self.mask = self.x if mask is None else aligned(mask)
        self.heads, self.eps = heads, eps
        self.tokens, self.f = self.batch * self.steps, self.w["linear1_weight"].shape[0]
        self.conv = "conv_weight" in self.w
        p = dropout if seed is not None else 0.0
        seed = self.x if seed is None else seed.to(x.device)  # x stands in where nothing is drawn
        # A threshold of 2^32 would not fit its word: at p = 1 the scale of zero does it all.
        self.random = (seed, min(round(p * 2**32), 2**32 - 1), 1 / (1 - p) if p < 1 else 0.0)
        self.half = x.element_size() == 2
        self.common = {"DROPOUT": p > 0, "PRECISION": _precision(x)}
        self.padded = max(16, triton.next_power_of_2(self.d))
        self.masked = mask is not None
        self.head_width = self.d // heads
        capability = torch.cuda.get_device_capability(x.device)[0] if x.is_cuda else 8
        self.blocks = Blocks.of(self.steps, self.head_width, self.half, capability)

    def tile(self, kernel: str) -> tuple[Tile, dict]:
        tile = _tile(kernel, self.padded, self.half)
        return tile, {"ROWS": tile.rows, "D": self.padded, "F": tile.units, "num_warps": tile.warps, **self.common}

    def convolution(self, x: Tensor, weight: Tensor, bias: Tensor | None, added: Tensor, want_u: bool) -> tuple[Tensor, Tensor]:
        """(u or empty, added + u), u the convolution of x by weight [tap, from, to]."""
        u, s = x.new_empty(x.shape if want_u else 0), torch.empty_like(x)
        columns = min(64, self.padded)
        convolve[(triton.cdiv(self.tokens, CONVOLVED_ROWS), triton.cdiv(self.d, columns))](
            x, weight, x if bias is None else bias, added, u, s, self.tokens, self.steps, self.d, BIAS=bias is not None, U=want_u,
            ROWS=CONVOLVED_ROWS, COLUMNS=columns, K=min(32, self.padded), PRECISION=self.common["PRECISION"], num_warps=8,
        )  # fmt: skip
        return u, s

    def input(self, want_u: bool) -> tuple[Tensor, Tensor]:
        """(u or empty, s): what the convolution adds to x, and the sum."""
        if not self.conv:
            return self.x.new_empty(0), self.x
        return self.convolution(self.x, self.w["conv_weight"].permute(2, 1, 0).contiguous(), self.w["conv_bias"], self.x, want_u)

    def project(self, s: Tensor) -> Tensor:
        return F.linear(s, self.w["in_proj_weight"], self.w["in_proj_bias"])

    def attention(self, kernel, block: int, *tensors: Tensor, **options) -> None:
        """Launches one of the attention kernels, a program a head and block of steps."""
        kernel[(self.batch * self.heads, triton.cdiv(self.steps, block))](
            *tensors, *self.random, self.head_width**-0.5, self.steps, self.d, self.heads, self.head_width, MASK=self.masked,
            BLOCK=block, H=self.blocks.h, **options, **self.common,
        )  # fmt: skip

    def statistics(self, wanted: bool) -> tuple[Tensor, Tensor]:
        """Room for the maxima and sums of the scores' rows, where they are wanted."""
        shape = (self.batch, self.heads, self.steps) if wanted else 0
        return self.x.new_empty(shape, dtype=torch.float32), self.x.new_empty(shape, dtype=torch.float32)

    def attend(self, qkv: Tensor, statistics: tuple[Tensor, Tensor], mixed: Tensor | None) -> None:
        """Writes the heads' outputs side by side to `mixed`, and the statistics, where there is room for them."""
        wanted = statistics[0].numel() > 0
        self.attention(
            attend, self.blocks.forward, qkv, self.mask, qkv if mixed is None else mixed, *statistics, OUT=mixed is not None,
            STATISTICS=wanted, num_warps=_warps(self.blocks.forward),
        )  # fmt: skip

    def follow(self, mixed: Tensor, s: Tensor, sums: tuple[Tensor, Tensor] | None, y: Tensor | None) -> None:
        """What comes after attention; writes what the norms take in to `sums`, and y, where they are given."""
        tile, blocks = self.tile("forward")
        w = self.w
        first, second = (s, s) if sums is None else sums
        feed_forward[(triton.cdiv(self.tokens, tile.rows),)](
            mixed, s, w["out_proj_weight"], w["out_proj_bias"], w["linear1_weight"], w["linear1_bias"], w["linear2_weight"],
            w["linear2_bias"], w["norm1_weight"], w["norm1_bias"], w["norm2_weight"], w["norm2_bias"], first, second,
            s if y is None else y, *self.random, self.eps, self.tokens, self.d, self.f, KEEP=sums is not None, Y=y is not None,
            K=min(32, self.padded), **blocks,
        )  # fmt: skip


def local_encoder_layer(
    x: Tensor, weights: list[Tensor], mask: Tensor | None, seed: Tensor | None, heads: int, dropout: float, eps: float, want_u: bool,
    keep: bool
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(y, u or empty, kept: the heads' outputs and what the norms take in, [3, B, T, d], or empty)."""
    layer = Layer(x, weights, mask, seed, heads, dropout, eps)
    y = torch.empty_like(layer.x)
    kept = x.new_empty((3, *x.shape) if keep else 0)
    if x.numel() == 0:
        return y, x.new_empty(x.shape if want_u and layer.conv else 0), kept
    u, s = layer.input(want_u)
    mixed = kept[0] if keep else torch.empty_like(layer.x)
    layer.attend(layer.project(s), layer.statistics(False), mixed)
    layer.follow(mixed, s, (kept[1], kept[2]) if keep else None, y)
    return y, u, kept


def local_encoder_layer_backward(
    grad: Tensor, grad_u: Tensor | None, x: Tensor, weights: list[Tensor], mask: Tensor | None, seed: Tensor | None, u: Tensor,
    kept: Tensor, heads: int, dropout: float, eps: float, x_needs_grad: bool
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(dx or empty, the parameters' gradients one after the other)."""
    layer = Layer(x, weights, mask, seed, heads, dropout, eps)
    d, w, dtype = layer.d, layer.w, x.dtype
    if x.numel() == 0:
        return x.new_empty(x.shape if x_needs_grad else 0), x.new_zeros(sum(p.numel() for p in weights))
    s = layer.x + u.contiguous() if layer.conv and u.numel() else layer.input(False)[1]
    qkv = layer.project(s)
    whole = layer.blocks.whole
    statistics = layer.statistics(not whole)
    if kept.numel():
        mixed, *sums = kept.contiguous()
        if not whole:
            layer.attend(qkv, statistics, None)
    else:
        mixed, *sums = (torch.empty_like(s) for _ in range(3))
        layer.attend(qkv, statistics, mixed)
        layer.follow(mixed, s, sums, None)

    gradients = {}
    dsum1, dattended, parts = _through_ffn(layer, aligned(grad), *sums, gradients)
    del sums
    gradients |= zip(("norm2_weight", "norm2_bias", "linear2_bias", "norm1_weight", "norm1_bias", "out_proj_bias"), parts, strict=True)
    dattended, mixed_rows = dattended.view(-1, d), mixed.view(-1, d)
    gradients["out_proj_weight"] = dattended.t() @ mixed_rows
    dmixed = dattended @ w["out_proj_weight"]
    del dattended
    dqkv = torch.empty_like(qkv)
    # One stage where there are loops: their operands fill the registers.
    layer.attention(
        attend_backward, layer.blocks.backward, qkv, layer.mask, mixed, dmixed, *statistics, dqkv, WHOLE=whole, num_stages=1,
        num_warps=layer.blocks.backward_warps,
    )  # fmt: skip
    del qkv, mixed, dmixed
    dqkv = dqkv.view(-1, 3 * d)
    gradients["in_proj_weight"], gradients["in_proj_bias"] = dqkv.t() @ s.view(-1, d), dqkv.sum(0)
    dx = x.new_empty(0)
    if x_needs_grad or layer.conv:
        dx = torch.addmm(dsum1.view(-1, d), dqkv, w["in_proj_weight"]).view(x.shape)  # of s
    del dqkv, dsum1, s
    if layer.conv:
        dx = _through_convolution(layer, dx, dx if grad_u is None else dx + grad_u, gradients, x_needs_grad)
    return dx, torch.cat([gradients[name].reshape(-1).to(dtype) for name in w])


def _through_ffn(layer: Layer, grad: Tensor, sum1: Tensor, sum2: Tensor, gradients: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient of sum1, of attention's output before its dropout, column sums [6, d]); the FFN's weights' go to `gradients`."""
    d, f, w = layer.d, layer.f, layer.w
    tile, blocks = layer.tile("backward")
    a, dfed, dsum1 = (torch.empty_like(grad) for _ in range(3))
    dattended = torch.empty_like(grad) if layer.common["DROPOUT"] else dsum1
    programs = triton.cdiv(layer.tokens, tile.rows)
    parts = grad.new_empty(programs, 6, d, dtype=torch.float32)
    ffn = (w["linear1_weight"], w["linear1_bias"], w["linear2_weight"])
    feed_forward_backward[(programs,)](
        grad, sum1, sum2, *ffn, w["norm1_weight"], w["norm1_bias"], w["norm2_weight"], a, dfed, dsum1, dattended, parts, *layer.random,
        layer.eps, layer.tokens, d, f, **blocks,
    )  # fmt: skip

    tile, blocks = layer.tile("weights")
    unit_blocks = triton.cdiv(f, tile.units)
    shares = max(1, min(PROGRAMS // max(unit_blocks, 1), triton.cdiv(layer.tokens, 4 * tile.rows)))
    share = triton.cdiv(triton.cdiv(layer.tokens, shares), tile.rows) * tile.rows
    shares = triton.cdiv(layer.tokens, share)
    dw1, dw2 = (grad.new_empty(shares, f, d, dtype=torch.float32) for _ in range(2))
    db1 = grad.new_empty(shares, f, dtype=torch.float32)
    if f > 0:
        feed_forward_weights[(unit_blocks, shares)](a, dfed, *ffn, dw1, dw2, db1, *layer.random, layer.tokens, share, d, f, **blocks)
    gradients |= {"linear1_weight": dw1.sum(0), "linear1_bias": db1.sum(0), "linear2_weight": dw2.sum(0).t()}
    return dsum1, dattended, parts.sum(0)


def _through_convolution(layer: Layer, ds: Tensor, du: Tensor, gradients: dict[str, Tensor], x_needs_grad: bool) -> Tensor:
    """dx, or an empty tensor, from the gradients of s = x + u and of u."""
    d = layer.d
    # A row of zeros after each sample is the margin of the next as well: each tap's gradient is a product of shifted rows.
    x_rows, du_rows = (F.pad(t, (0, 0, 0, 1)).view(-1, d) for t in (layer.x, du))
    before, here, after = du_rows[1:].t() @ x_rows[:-1], du_rows.t() @ x_rows, du_rows[:-1].t() @ x_rows[1:]
    gradients["conv_weight"] = torch.stack([before, here, after], 2)
    gradients["conv_bias"] = du.sum((0, 1))
    if not x_needs_grad:
        return ds.new_empty(0)
    turned = layer.w["conv_weight"].permute(2, 0, 1).flip(0).contiguous()  # [tap, to, from]
    return layer.convolution(du.contiguous(), turned, None, ds, False)[1]


_RANDOM = {"seed": "*i64", "threshold": "i64", "keep_scale": "fp32"}
_WEIGHTS = ("w1", "b1", "w2")


def _aot(capability: int, d: int, dtype: str, heads: int, steps: int) -> list[tuple]:
    """The kernels as one shape launches them on GPUs of this compute capability."""
    half, precision = dtype != "*fp32", {"PRECISION": "ieee"}
    padded, blocks = triton.next_power_of_2(d), Blocks.of(steps, d // heads, half, capability)
    sizes = dict.fromkeys(("steps", "width", "heads", "head_width"), "i32") | {"scale": "fp32"} | _RANDOM
    rows = dict.fromkeys(("tokens", "d", "f"), "i32") | _RANDOM
    common = {"MASK": True, "DROPOUT": True, "H": blocks.h, **precision}

    def of(*names: str) -> dict[str, str]:
        return dict.fromkeys(names, dtype)

    def tiled(kernel: str) -> tuple[dict, int]:
        tile = _tile(kernel, padded, half)
        return {"DROPOUT": True, "ROWS": tile.rows, "D": padded, "F": tile.units, **precision}, tile.warps

    forward, backward, weights = (tiled(kernel) for kernel in ("forward", "backward", "weights"))
    norms = ("gamma1", "beta1", "gamma2", "beta2")
    return [
        (
            convolve,
            {**of("x", "weight", "bias", "added", "u", "s"), **dict.fromkeys(("tokens", "steps", "d"), "i32")},
            {"BIAS": True, "U": True, "ROWS": CONVOLVED_ROWS, "COLUMNS": min(64, padded), "K": 32, **precision},
            8,
        ),
        (
            attend,
            {**of("qkv", "mask", "mixed"), **pointers("tops", "totals"), **sizes},
            {"OUT": True, "STATISTICS": True, "BLOCK": blocks.forward, **common},
            8,
        ),
        (
            attend_backward,
            {**of("qkv", "mask", "mixed", "dmixed", "dqkv"), **pointers("tops", "totals"), **sizes},
            {"WHOLE": blocks.whole, "BLOCK": blocks.backward, **common},
            blocks.backward_warps,
            1,
        ),
        (
            feed_forward,
            {**of("mixed", "s", "w_out", "b_out", *_WEIGHTS, "b2", *norms, "sum1", "sum2", "y"), **rows, "eps": "fp32"},
            {"KEEP": True, "Y": True, "K": 32, **forward[0]},
            forward[1],
        ),
        (
            feed_forward_backward,
            {
                **of("grad", "sum1", "sum2", *_WEIGHTS, *norms[:3], "a_out", "dfed", "dsum1", "dattended"),
                **pointers("parts"),
                **rows,
                "eps": "fp32",
            },
            backward[0],
            backward[1],
        ),
        (
            feed_forward_weights,
            {**of("a", "dfed", *_WEIGHTS), **pointers("dw1", "dw2", "db1"), **rows, "share": "i32"},
            weights[0],
            weights[1],
        ),
    ]


_AOT_SHAPES = ((64, "*fp32", 2, 60), (256, "*bf16", 4, 300))


def AOT(capability: int) -> list[tuple]:  # noqa: N802 (a table in the other modules)
    """What is compiled ahead of time, by compute capability (80, 90, ...)."""
    attention = next(entry for entry in _aot(capability // 10, 128, "*fp32", 2, 60) if entry[0] is attend_backward)  # head width 64
    return [attention, *(entry for shape in _AOT_SHAPES for entry in _aot(capability // 10, *shape))]


AOT_SPILLS = 272  # bytes a thread, at most
AOT_ALIGNED = ("width", "d", "f", "head_width", "share")  # multiples of 16 in every model that this is for: Triton specialises on it
