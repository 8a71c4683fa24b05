"""Cases of linear_tanh."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ... import ops
from ...ops.linear_tanh import reference
from .case import BadInput, Case, Inputs


def _case(id: str, batch: int, steps: int, inputs: int, outputs: int, *, bias: bool = True, by_feature: bool = False, **more) -> Case:
    def make(generator: torch.Generator) -> Inputs:
        x = torch.randn(batch, steps, inputs, generator=generator)
        if by_feature:  # a feature's days side by side, as Alpha360 has them
            x = x.transpose(1, 2).contiguous().transpose(1, 2)
        weight = torch.randn(outputs, inputs, generator=generator) / max(inputs, 1) ** 0.5
        return {"x": x, "weight": weight, "bias": torch.randn(outputs, generator=generator) if bias else None}

    tokens = batch * steps
    return Case(
        op="linear_tanh",
        id=id,
        make=make,
        call=lambda i: {"y": ops.linear_tanh(**i)},
        reference=lambda i: {"y": reference.linear_tanh(**i)},
        eager=lambda i: {"y": torch.tanh(F.linear(*i.values()))},
        needs_grad=("x", "weight", *(["bias"] if bias else [])),
        traffic=lambda i: (
            tokens * (inputs + outputs) + outputs * inputs,
            tokens * (2 * inputs + 2 * outputs) + 2 * outputs * inputs,
        ),
        **more,
    )


CASES = [
    _case("usual", 7, 60, 6, 64),
    _case("odd sizes", 131, 3, 17, 45),
    _case("several groups", 300, 20, 20, 33),
    _case("one row, one step, one column", 1, 1, 5, 1),
    _case("more steps than a block", 3, 250, 3, 9, bias=False),
    _case("one feature", 40, 7, 1, 16),
    _case("gradcheck", 3, 2, 4, 3, by_feature=True, purpose="gradcheck"),
    _case("gradcheck without bias", 2, 3, 2, 4, bias=False, purpose="gradcheck"),
    _case("800 x 60, 6 to 64", 800, 60, 6, 64, by_feature=True, purpose="benchmark"),
    _case("800 x 20, 20 to 64", 800, 20, 20, 64, purpose="benchmark"),
]

_x, _w = torch.zeros(2, 3, 4), torch.zeros(5, 4)
_bad = [
    ("rank", lambda: ops.linear_tanh(_x[0], _w), ValueError, r"x must be of shape \[B, T, K\], got \[3, 4\]"),
    ("dtype", lambda: ops.linear_tanh(_x.int(), _w), TypeError, "x must be a floating-point tensor, got torch.int32"),
    ("weight of another depth", lambda: ops.linear_tanh(_x, _w[:, :3]), ValueError, r"weight must be of shape \[5, 4\], got \[5, 3\]"),
    ("weight of another dtype", lambda: ops.linear_tanh(_x, _w.double()), TypeError, "weight must be of dtype torch.float32"),
    ("bias", lambda: ops.linear_tanh(_x, _w, _w[0]), ValueError, r"bias must be of shape \[5\], got \[4\]"),
]
BAD_INPUTS = [BadInput("linear_tanh", id, call, error, f"^linear_tanh: {message}") for id, call, error, message in _bad]
