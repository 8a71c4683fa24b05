"""Cases of local_encoder_layer."""

from __future__ import annotations

import torch

from ... import ops
from ...ops import _random
from ...ops.local_encoder_layer import reference
from ...ops.local_encoder_layer.op import causal_mask
from ..tolerances import Tolerance
from .case import BadInput, Case, Inputs

_SEED = torch.tensor(20170612)
_OF_TORCH = ("self_attn.in_proj_weight", "self_attn.in_proj_bias", "self_attn.out_proj.weight", "self_attn.out_proj.bias")


def _shapes(d: int, f: int, conv: bool) -> dict[str, tuple[int, ...]]:
    shapes = ((3 * d, d), (3 * d,), (d, d), (d,), (f, d), (f,), (d, f), *[(d,)] * 5)
    shapes += ((d, d, 3), (d,)) if conv else ()
    return dict(zip(reference.NAMES, shapes, strict=False))


def _case(
    id: str,
    batch: int,
    steps: int,
    d: int,
    heads: int,
    f: int,
    *,
    conv: bool = True,
    mask: bool = False,
    is_causal: bool = False,
    dropout: float = 0.0,
    memory: str = "auto",
    **more,
) -> Case:
    shapes = _shapes(d, f, conv)

    def make(generator: torch.Generator) -> Inputs:
        drawn: Inputs = {"x": torch.randn(batch, steps, d, generator=generator)}
        for name, shape in shapes.items():
            fan_in = torch.Size(shape[1:]).numel() if len(shape) > 1 else 16
            drawn[name] = torch.randn(shape, generator=generator) / fan_in**0.5 + (name in ("norm1_weight", "norm2_weight"))
        if more.get("purpose") == "benchmark":  # millions of hidden values: none so near to the ReLU's kink that rounding decides
            drawn["linear1_bias"] += torch.tensor([6.0, -6.0]).repeat(f // 2)
        drawn["mask"] = torch.randn(steps, steps, generator=generator) if mask else None
        return drawn

    def call(i: Inputs) -> dict[str, torch.Tensor]:
        options = dict(heads=heads, is_causal=is_causal, dropout=dropout, memory=memory, return_conv=conv)
        draw, _random.draw_seed = _random.draw_seed, lambda device: _SEED.to(device)
        try:
            found = ops.local_encoder_layer(**i, **options)
        finally:
            _random.draw_seed = draw
        return {"y": found[0], "u": found[1]} if conv else {"y": found}

    def mask_of(i: Inputs) -> torch.Tensor | None:
        causal = causal_mask(steps, i["x"]) if is_causal else None
        return causal if i["mask"] is None else i["mask"] if causal is None else i["mask"] + causal

    def by_reference(i: Inputs) -> dict[str, torch.Tensor]:
        weights = [i[name] for name in shapes]
        seed = _SEED if dropout > 0 else None
        y, u, _ = reference.local_encoder_layer(i["x"], weights, mask_of(i), seed, heads, dropout, 1e-5, conv, False)
        return {"y": y, "u": u} if conv else {"y": y}

    def eager(i: Inputs) -> dict[str, torch.Tensor]:
        if dropout > 0:  # torch's own draws another mask
            return by_reference(i)
        layer = torch.nn.TransformerEncoderLayer(d, heads, f, 0.0, batch_first=True, device="meta")
        names = [n if n.startswith("conv") else _OF_TORCH[k] if k < 4 else n.replace("_", ".") for k, n in enumerate(shapes)]
        parameters = {ours: i[name] for ours, name in zip(names, shapes, strict=True) if not name.startswith("conv")}
        u = reference.convolution(i["x"], i["conv_weight"], i["conv_bias"]) if conv else None
        y = torch.func.functional_call(layer, parameters, (i["x"] if u is None else i["x"] + u, mask_of(i)))
        return {"y": y, "u": u} if conv else {"y": y}

    size, held = batch * steps * d, sum(torch.Size(s).numel() for s in shapes.values())
    return Case(
        op="local_encoder_layer",
        id=id,
        make=make,
        call=call,
        reference=by_reference,
        eager=eager,
        # Two norms and a softmax magnify what each intermediate tensor loses, and a hidden value at the ReLU's kink falls on either side
        # of it: torch's layer in bfloat16 errs as much. Away from the kink, test_local_encoder_layer is strict.
        half_tolerance=Tolerance(5e-2, 0.25),
        needs_grad=("x", *shapes),
        traffic=lambda i: (size * (2 + conv) + held, size * (3 + conv) + 2 * held),
        **more,
    )


CASES = [
    _case("odd sizes", 5, 7, 6, 2, 21),
    _case("no convolution", 3, 20, 24, 3, 45, conv=False),
    _case("low memory", 7, 9, 18, 1, 33, memory="low"),
    _case("low memory, no convolution", 7, 9, 18, 2, 33, conv=False, memory="low"),
    _case("one step", 5, 1, 8, 8, 40),
    _case("one sample", 1, 60, 64, 2, 100),
    _case("long", 2, 130, 16, 2, 30, mask=True),
    _case("several groups", 13, 61, 8, 2, 19),
    _case("masked", 4, 11, 12, 2, 17, conv=False, mask=True),
    _case("causal", 4, 35, 12, 2, 17, is_causal=True),
    _case("causal and masked", 4, 5, 12, 2, 17, is_causal=True, mask=True),
    _case("dropout", 6, 10, 20, 4, 70, dropout=0.3),
    _case("dropout, low memory", 6, 10, 20, 4, 37, dropout=0.3, memory="low", conv=False),
    _case("everything dropped", 2, 3, 4, 1, 5, dropout=1.0),
    _case("gradcheck", 2, 3, 4, 2, 5, purpose="gradcheck"),
    _case("gradcheck no convolution", 2, 3, 4, 2, 5, conv=False, memory="low", mask=True, purpose="gradcheck"),
    _case("gradcheck dropout", 2, 3, 4, 1, 5, dropout=0.4, is_causal=True, purpose="gradcheck"),
    _case("100 x 60, d 64, FFN 2048", 100, 60, 64, 2, 2048, purpose="benchmark"),
    _case("100 x 60, d 64, FFN 2048, no convolution", 100, 60, 64, 2, 2048, conv=False, purpose="benchmark"),
]


def _call(x: torch.Tensor | None = None, d: int = 4, heads: int = 2, conv: bool = False, change: dict | None = None, **options):
    parameters = {name: torch.zeros(shape) for name, shape in _shapes(d, 5, conv).items()} | (change or {})
    return lambda: ops.local_encoder_layer(torch.zeros(2, 3, 4) if x is None else x, **parameters, heads=heads, **options)


_bad = [
    ("rank", _call(torch.zeros(3, 4)), ValueError, r"x must be of shape \[B, T, d\], got \[3, 4\]"),
    ("dtype", _call(torch.zeros(2, 3, 4).long()), TypeError, "x must be a floating-point tensor, got torch.int64"),
    ("heads", _call(heads=3), ValueError, "heads must be a divisor of d = 4, got 3"),
    ("width", _call(torch.zeros(2, 3, 6)), ValueError, r"x must be of d = 4 columns, as in_proj_weight has, got \[2, 3, 6\]"),
    (
        "hidden width",
        _call(change={"linear2_weight": torch.zeros(4, 6)}),
        ValueError,
        r"linear2_weight must be of shape \[4, 5\], got \[4, 6\]",
    ),
    (
        "dtype of a parameter",
        _call(change={"norm1_bias": torch.zeros(4).double()}),
        TypeError,
        r"norm1_bias must be of dtype torch\.float32, got torch\.float64",
    ),
    ("mask", _call(mask=torch.zeros(3, 4)), ValueError, r"mask must be of shape \[3, 3\], got \[3, 4\]"),
    ("mask with gradient", _call(mask=torch.zeros(3, 3, requires_grad=True)), ValueError, "mask must be without gradient"),
    ("probability", _call(dropout=-0.1), ValueError, r"dropout must be a probability, got -0\.1"),
    ("memory", _call(memory="none"), ValueError, "memory must be 'auto' or 'low', got 'none'"),
    (
        "half a convolution",
        _call(change={"conv_bias": torch.zeros(4)}),
        ValueError,
        "conv_weight and conv_bias must be given together, got one of them",
    ),
    ("convolution's output without one", _call(return_conv=True), ValueError, "conv_weight must be given where return_conv is, got None"),
]
BAD_INPUTS = [BadInput("local_encoder_layer", id, call, error, f"^local_encoder_layer: {message}") for id, call, error, message in _bad]
