"""Cases of linear."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ... import ops
from ...ops.linear import reference
from .case import BadInput, Case, Inputs


def _case(id: str, rows: int, depth: int, columns: int, *, mask: bool = False, **more) -> Case:
    def make(generator: torch.Generator) -> Inputs:
        x, weight = torch.randn(rows, depth, generator=generator), torch.randn(columns, depth, generator=generator)
        drawn = torch.rand(rows, depth, generator=generator).sub_(0.3).relu_()  # some features masked out, as by sparsemax
        return {"x": x, "weight": weight / max(depth, 1) ** 0.5, "mask": drawn if mask else None}

    return Case(
        op="linear",
        id=id,
        make=make,
        call=lambda i: {"u": ops.linear(**i)},
        reference=lambda i: {"u": reference.linear(**i)},
        eager=lambda i: {"u": F.linear(i["x"] if i["mask"] is None else i["x"] * i["mask"], i["weight"])},
        needs_grad=("x", "weight", *(["mask"] if mask else [])),
        follows_autocast=True,
        traffic=lambda i: (
            rows * ((1 + mask) * depth + columns) + depth * columns,
            rows * ((2 + 2 * mask) * depth + columns) + 2 * depth * columns,
        ),
        **more,
    )


CASES = [
    _case("odd sizes", 131, 17, 45),
    _case("odd sizes, masked", 131, 17, 45, mask=True),
    _case("several parts", 1100, 30, 13),
    _case("one column", 129, 5, 1, mask=True),
    _case("few rows", 7, 33, 9),
    _case("one row, masked", 1, 20, 3, mask=True),
    _case("gradcheck", 5, 4, 3, purpose="gradcheck"),
    _case("gradcheck masked", 5, 4, 3, mask=True, purpose="gradcheck"),
    _case("4096 x 128 to 256", 4096, 128, 256, purpose="benchmark"),
    _case("4096 x 158 to 256, masked", 4096, 158, 256, mask=True, purpose="benchmark"),
]

_x = torch.zeros(6, 4)
BAD_INPUTS = [
    BadInput("linear", "rank", lambda: ops.linear(_x[0], _x), ValueError, r"^linear: x must be of shape \[B, K\], got \[4\]"),
    BadInput("linear", "dtype", lambda: ops.linear(_x.long(), _x), TypeError, r"^linear: x must be a floating-point tensor"),
    BadInput(
        "linear",
        "weight of another depth",
        lambda: ops.linear(_x, torch.zeros(3, 5)),
        ValueError,
        r"^linear: weight must be of shape \[3, 4\], got \[3, 5\]",
    ),
    BadInput(
        "linear",
        "weight of another dtype",
        lambda: ops.linear(_x, torch.zeros(3, 4).double()),
        TypeError,
        r"^linear: weight must be of dtype torch\.float32, got torch\.float64",
    ),
    BadInput(
        "linear",
        "mask of another shape",
        lambda: ops.linear(_x, torch.zeros(3, 4), _x[:1]),
        ValueError,
        r"^linear: mask must be of shape \[6, 4\], got \[1, 4\]",
    ),
]
