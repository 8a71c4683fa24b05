"""Cases of ghost_batch_norm."""

from __future__ import annotations

import torch

from ... import ops
from ...ops.ghost_batch_norm import reference
from ..tolerances import Tolerance
from ._norm import COLUMNS, EPS, MOMENTUM, bad_norm_inputs, copied_statistics, eager_norm, norm_inputs
from .case import BadInput, Case, Inputs

_USUAL = ("weight", "bias", "running_mean", "running_var")


def _case(
    id: str, rows: int, features: int, vbs: int, *, given: tuple[str, ...] = _USUAL, training: bool = True, **more
) -> Case:
    updated = ("running_mean", "running_var") if training and "running_mean" in given else ()

    def arguments(i: Inputs) -> tuple:
        return (i["x"], *(i[c] for c in COLUMNS), vbs, training, MOMENTUM, EPS)

    def call(i: Inputs) -> dict[str, torch.Tensor]:
        i = copied_statistics(i)
        y = ops.ghost_batch_norm(**i, virtual_batch_size=vbs, training=training, momentum=MOMENTUM, eps=EPS)
        return {"y": y} | {k: i[k] for k in updated}

    def by_reference(i: Inputs) -> dict[str, torch.Tensor]:
        y, _, _, mean, var = reference.ghost_batch_norm(*arguments(i))
        return {"y": y} | dict(zip(updated, (mean, var), strict=False))

    def eager(i: Inputs) -> dict[str, torch.Tensor]:
        y, mean, var = eager_norm(i["x"], i, vbs, training)
        return {"y": y} | dict(zip(updated, (mean, var), strict=False))

    return Case(
        op="ghost_batch_norm",
        id=id,
        make=lambda g: norm_inputs(g, "x", rows, features, given),
        call=call,
        reference=by_reference,
        eager=eager,
        needs_grad=("x", *(c for c in ("weight", "bias", "linear_bias") if c in given)),
        traffic=lambda i: (2 * i["x"].numel(), 3 * i["x"].numel()),
        **more,
    )


CASES = [
    _case("one batch", 63, 33, 64),
    _case("exactly one batch", 64, 5, 64),
    _case("one row more than a batch", 65, 5, 64),
    _case("ragged", 257, 40, 50),
    _case("one row left over", 13, 5, 3),
    # The spread of two rows is a difference of close numbers, and their normalised values are +-1 whatever they were.
    _case("two rows", 2, 3, 8, tolerance=Tolerance(1e-4, 1e-5, 1e-6)),
    _case("tiny batches", 30, 7, 2, tolerance=Tolerance(1e-3, 1e-4)),
    _case("batches of many blocks", 4203, 9, 2100),
    _case("many batches", 293, 6, 8),
    _case("one feature", 31, 1, 8),
    _case("no parameters", 40, 12, 16, given=()),
    _case("weight alone", 40, 12, 16, given=("weight",)),
    _case("linear bias", 100, 9, 33, given=COLUMNS),
    _case("linear bias without statistics", 21, 4, 5, given=("weight", "bias", "linear_bias")),
    _case("evaluation", 50, 33, 7, training=False),
    _case("evaluation of one row", 1, 5, 7, training=False),
    _case("evaluation with linear bias", 21, 6, 7, given=COLUMNS, training=False),
    _case("evaluation without parameters", 21, 6, 7, given=("running_mean", "running_var"), training=False),
    _case("gradcheck", 7, 3, 3, purpose="gradcheck"),
    _case("gradcheck linear bias", 7, 3, 3, given=COLUMNS, purpose="gradcheck"),
    _case("gradcheck evaluation", 4, 3, 3, given=COLUMNS, training=False, purpose="gradcheck"),
    _case("4096 x 256, vbs 2048", 4096, 256, 2048, purpose="benchmark"),
    _case("4096 x 158, vbs 2048", 4096, 158, 2048, purpose="benchmark"),
    _case("4096 x 256, vbs 128", 4096, 256, 128, purpose="benchmark"),
]

BAD_INPUTS = bad_norm_inputs("ghost_batch_norm", "x", ops.ghost_batch_norm) + [
    BadInput(
        "ghost_batch_norm",
        "evaluation without running statistics",
        lambda: ops.ghost_batch_norm(torch.zeros(2, 3), virtual_batch_size=2, training=False),
        ValueError,
        "^ghost_batch_norm: running_mean must be given in evaluation, got None",
    )
]
