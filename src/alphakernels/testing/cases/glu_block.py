"""Cases of glu_block."""

from __future__ import annotations

import math

import torch

from ... import ops
from ...ops.glu_block import reference
from ._norm import COLUMNS, EPS, MOMENTUM, bad_norm_inputs, copied_statistics, eager_norm, norm_inputs
from .case import BadInput, Case, Inputs

_USUAL = ("weight", "bias", "running_mean", "running_var")


def _case(
    id: str,
    rows: int,
    hidden: int,
    vbs: int,
    *,
    given: tuple[str, ...] = _USUAL,
    residual: bool = True,
    scale: float = math.sqrt(0.5),
    training: bool = True,
    **more,
) -> Case:
    updated = ("running_mean", "running_var") if training and "running_mean" in given else ()
    normed = training or "running_mean" in given

    def make(generator: torch.Generator) -> Inputs:
        inputs = norm_inputs(generator, "u", rows, 2 * hidden, given)
        return inputs | {"residual": torch.randn(rows, hidden, generator=generator) if residual else None}

    def arguments(i: Inputs) -> tuple:
        return (i["u"], i["residual"], *(i[c] for c in COLUMNS), vbs, training, MOMENTUM, EPS, scale)

    def call(i: Inputs) -> dict[str, torch.Tensor]:
        i = copied_statistics(i)
        options = dict(virtual_batch_size=vbs, training=training, momentum=MOMENTUM, eps=EPS, scale=scale)
        return {"out": ops.glu_block(**i, **options)} | {k: i[k] for k in updated}

    def by_reference(i: Inputs) -> dict[str, torch.Tensor]:
        out, _, _, mean, var = reference.glu_block(*arguments(i))
        return {"out": out} | dict(zip(updated, (mean, var), strict=False))

    def eager(i: Inputs) -> dict[str, torch.Tensor]:
        u, mean, var = i["u"], None, None
        if normed:
            u, mean, var = eager_norm(u, i, vbs, training)
        elif i["linear_bias"] is not None:
            u = u + i["linear_bias"]
        out = u[:, :hidden] * torch.sigmoid(u[:, hidden:])
        if residual:
            out = i["residual"] + out
        return {"out": out * scale} | dict(zip(updated, (mean, var), strict=False))

    trained = [c for c in ("weight", "bias", "linear_bias") if c in given and (normed or c == "linear_bias")]
    return Case(
        op="glu_block",
        id=id,
        make=make,
        call=call,
        reference=by_reference,
        eager=eager,
        needs_grad=("u", *trained, *(["residual"] if residual else [])),
        traffic=lambda i: ((3 + residual) * i["u"].numel() // 2, (5 + residual) * i["u"].numel() // 2),
        **more,
    )


CASES = [
    _case("one batch", 63, 17, 64),
    _case("exactly one batch", 64, 5, 64),
    _case("ragged", 257, 20, 50),
    _case("one row left over", 13, 3, 3),
    _case("batches of many blocks", 4203, 9, 2100),
    _case("many batches", 293, 6, 8),
    _case("one column", 31, 1, 8),
    _case("no residual", 40, 6, 16, residual=False, scale=1.0),
    _case("no parameters", 40, 6, 16, given=()),
    _case("linear bias", 100, 9, 33, given=COLUMNS),
    _case("evaluation", 50, 17, 7, training=False),
    _case("evaluation with linear bias", 21, 3, 7, given=COLUMNS, training=False),
    _case("folded norm", 50, 17, 7, given=("linear_bias",), training=False),
    _case("folded norm, one row, no residual", 1, 5, 7, given=(), residual=False, training=False),
    _case("gradcheck", 7, 2, 3, purpose="gradcheck"),
    _case("gradcheck linear bias", 7, 2, 3, given=COLUMNS, residual=False, purpose="gradcheck"),
    _case("gradcheck evaluation", 4, 2, 3, given=COLUMNS, training=False, purpose="gradcheck"),
    _case("gradcheck folded norm", 4, 2, 3, given=("linear_bias",), training=False, purpose="gradcheck"),
    _case("4096 x 256, vbs 2048", 4096, 128, 2048, purpose="benchmark"),
    _case("4096 x 256, vbs 128", 4096, 128, 128, purpose="benchmark"),
    _case("4096 x 256, folded norm", 4096, 128, 2048, given=("linear_bias",), training=False, purpose="benchmark"),
]

_u = torch.zeros(6, 4)
BAD_INPUTS = bad_norm_inputs("glu_block", "u", ops.glu_block) + [
    BadInput(
        "glu_block",
        "odd columns",
        lambda: ops.glu_block(torch.zeros(6, 3)),
        ValueError,
        r"^glu_block: u must be of an even number of columns \[B, 2H\], got \[6, 3\]",
    ),
    BadInput(
        "glu_block",
        "residual of another shape",
        lambda: ops.glu_block(_u, residual=_u),
        ValueError,
        r"^glu_block: residual must be of shape \[6, 2\], got \[6, 4\]",
    ),
    BadInput(
        "glu_block",
        "residual of another dtype",
        lambda: ops.glu_block(_u, residual=_u[:, :2].double()),
        TypeError,
        r"^glu_block: residual must be of dtype torch\.float32, got torch\.float64",
    ),
]
