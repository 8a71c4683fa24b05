"""Cases of glu_layer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ... import ops
from ...ops.glu_layer import reference
from ._norm import COLUMNS, EPS, MOMENTUM, copied_statistics, eager_norm, norm_inputs
from .case import BadInput, Case, Inputs

_USUAL = ("weight", "bias", "running_mean", "running_var")


def _case(
    id: str,
    rows: int,
    depth: int,
    hidden: int,
    vbs: int,
    *,
    given: tuple[str, ...] = _USUAL,
    mask: bool = False,
    residual: bool = False,
    training: bool = True,
    **more,
) -> Case:
    scale = math.sqrt(0.5) if residual else 1.0
    updated = ("running_mean", "running_var") if training and "running_mean" in given else ()

    def make(generator: torch.Generator) -> Inputs:
        norm = norm_inputs(generator, "u", 1, 2 * hidden, given)
        del norm["u"]
        x, drawn = torch.randn(rows, depth, generator=generator), torch.rand(rows, depth, generator=generator)
        fc = torch.randn(2 * hidden, depth, generator=generator) / depth**0.5
        return {"x": x, "fc": fc, "mask": drawn if mask else None} | norm

    def call(i: Inputs) -> dict[str, torch.Tensor]:
        i = copied_statistics(i)
        options = dict(virtual_batch_size=vbs, training=training, momentum=MOMENTUM, eps=EPS, residual=residual, scale=scale)
        return {"out": ops.glu_layer(**i, **options)} | {k: i[k] for k in updated}

    def by_reference(i: Inputs) -> dict[str, torch.Tensor]:
        norm = (*(i[c] for c in COLUMNS), vbs, training, MOMENTUM, EPS)
        out, _, _, mean, var = reference.glu_layer(i["x"], i["fc"], i["mask"], *norm, residual=residual, scale=scale)
        return {"out": out} | dict(zip(updated, (mean, var), strict=False))

    def eager(i: Inputs) -> dict[str, torch.Tensor]:
        u = F.linear(i["x"] if i["mask"] is None else i["x"] * i["mask"], i["fc"])
        u, mean, var = eager_norm(u, i, vbs, training)
        out = u[:, :hidden] * torch.sigmoid(u[:, hidden:])
        return {"out": ((i["x"] + out) if residual else out) * scale} | dict(zip(updated, (mean, var), strict=False))

    trained = [c for c in ("weight", "bias", "linear_bias") if c in given]
    return Case(
        op="glu_layer",
        id=id,
        make=make,
        call=call,
        reference=by_reference,
        eager=eager,
        needs_grad=("x", "fc", *(["mask"] if mask else []), *trained),
        follows_autocast=True,
        traffic=lambda i: (
            rows * ((1 + mask) * depth + 3 * hidden) + 2 * hidden * depth,
            rows * ((2 + 2 * mask) * depth + 3 * hidden) + 4 * hidden * depth,
        ),
        **more,
    )


CASES = [
    _case("one batch", 63, 11, 17, 64),
    _case("ragged", 257, 20, 20, 50, residual=True),
    _case("masked", 131, 15, 9, 40, mask=True),
    _case("several groups", 2300, 5, 3, 1100, given=COLUMNS),
    _case("several groups, residual", 2300, 3, 3, 1100, residual=True),
    _case("several groups, masked", 2300, 4, 3, 1100, mask=True),
    _case("no parameters", 40, 6, 6, 16, given=()),
    _case("evaluation", 50, 7, 17, 7, training=False, given=COLUMNS),
    _case("evaluation, residual", 130, 17, 17, 7, training=False, residual=True),
    _case("evaluation, masked", 130, 19, 4, 7, training=False, mask=True),
    _case("gradcheck", 12, 3, 2, 6, purpose="gradcheck"),
    _case("gradcheck residual", 12, 2, 2, 6, residual=True, purpose="gradcheck"),
    _case("gradcheck masked", 12, 3, 2, 6, mask=True, purpose="gradcheck"),
    _case("gradcheck evaluation", 4, 2, 2, 3, given=COLUMNS, training=False, purpose="gradcheck"),
    _case("4096 x 128 to 256, vbs 2048", 4096, 128, 128, 2048, residual=True, purpose="benchmark"),
    _case("4096 x 158 to 256, masked", 4096, 158, 128, 2048, mask=True, purpose="benchmark"),
]

_x, _fc = torch.randn(6, 4), torch.randn(8, 4)
BAD_INPUTS = [
    BadInput(
        "glu_layer",
        "rank",
        lambda: ops.glu_layer(_x[0], _fc),
        ValueError,
        r"^glu_layer: x must be of shape \[B, K\], got \[4\]",
    ),
    BadInput(
        "glu_layer",
        "fc of odd rows",
        lambda: ops.glu_layer(_x, _fc[:7]),
        ValueError,
        r"^glu_layer: fc must be of shape \[2H, 4\], got \[7, 4\]",
    ),
    BadInput(
        "glu_layer",
        "residual of another width",
        lambda: ops.glu_layer(_x, _fc[:6], residual=True),
        ValueError,
        r"^glu_layer: x must be of 3 columns to be the residual, got \[6, 4\]",
    ),
    BadInput(
        "glu_layer",
        "residual with a mask",
        lambda: ops.glu_layer(_x, _fc, residual=True, mask=_x),
        ValueError,
        r"^glu_layer: mask must be None where there is a residual",
    ),
    BadInput(
        "glu_layer",
        "one row",
        lambda: ops.glu_layer(_x[:1], _fc),
        ValueError,
        r"(glu_layer: x|glu_block: u) must be of more than one row in every virtual batch when training, got 1 rows",
    ),
]
