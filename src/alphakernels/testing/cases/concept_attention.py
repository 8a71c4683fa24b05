"""Cases of concept_attention and hidden_concepts."""

from __future__ import annotations

import torch

from ... import ops
from ...ops.concept_attention import reference
from ...ops.hidden_concepts import reference as hidden_reference
from ..tolerances import TOLERANCES
from .case import BadInput, Case, Inputs


def _offsets(sizes: tuple[int, ...]) -> torch.Tensor | None:
    return torch.tensor([0, *sizes]).cumsum(0) if sizes else None


def _to(offsets: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    return None if offsets is None else offsets.to(like.device)


def _attention(
    id: str, n: int, m: int, hidden: int, *, days: tuple[int, ...] = (), concept_days: tuple[int, ...] = (), silent=(), **more
) -> Case:
    """`silent`: concepts of no stock."""
    rows, members = _offsets(days), _offsets(concept_days)

    def make(generator: torch.Generator) -> Inputs:
        concepts = torch.randn(m, hidden, generator=generator)
        concepts[list(silent)] = 0
        return {"x": torch.randn(n, hidden, generator=generator), "concepts": concepts}

    def call(i: Inputs) -> dict[str, torch.Tensor]:
        return {"out": ops.concept_attention(i["x"], i["concepts"], _to(rows, i["x"]), _to(members, i["x"]))}

    def by_reference(i: Inputs) -> dict[str, torch.Tensor]:
        return {"out": reference.concept_attention(i["x"], i["concepts"], _to(rows, i["x"]), _to(members, i["x"]))[0]}

    return Case(
        op="concept_attention",
        id=id,
        make=make,
        call=call,
        reference=by_reference,
        eager=by_reference,
        needs_grad=("x", "concepts"),
        traffic=lambda i: ((2 * n + m) * hidden, (4 * n + 2 * m) * hidden),
        **more,
    )


def _hidden(id: str, n: int, hidden: int, *, days: tuple[int, ...] = (), **more) -> Case:
    rows = _offsets(days)

    def make(generator: torch.Generator) -> Inputs:
        return {"x": torch.randn(n, hidden, generator=generator) + 0.3}

    def by_reference(i: Inputs) -> dict[str, torch.Tensor]:
        return {"concepts": hidden_reference.hidden_concepts(i["x"], _to(rows, i["x"]))[0]}

    return Case(
        op="hidden_concepts",
        id=id,
        make=make,
        call=lambda i: {"concepts": ops.hidden_concepts(i["x"], _to(rows, i["x"]))},
        reference=by_reference,
        eager=by_reference,
        needs_grad=("x",),
        traffic=lambda i: (2 * n * hidden, 3 * n * hidden),
        **more,
    )


CASES = [
    # The one concept's share is one, whatever x is: its gradient is nothing but the rounding of float64.
    _attention("one of each", 1, 1, 5, half_tolerance=TOLERANCES[torch.bfloat16]._replace(absolute=1e-6)),
    _attention("stocks and concepts", 63, 31, 17),
    _attention("more than a tile", 60, 270, 33, silent=(0, 7, 269)),
    _attention("days", 101, 77, 20, days=(1, 60, 0, 40), concept_days=(3, 40, 4, 30), silent=(5, 6)),
    _attention("whole panels", 100, 150, 32, silent=(3,)),
    _attention("fewer concepts in whole panels", 130, 70, 32),
    _attention("gradcheck", 5, 4, 3, silent=(), purpose="gradcheck"),
    _attention("gradcheck days", 6, 5, 3, days=(2, 4), concept_days=(2, 3), purpose="gradcheck"),
    _attention("300 x 733 x 64", 300, 733, 64, purpose="benchmark"),
    _attention("300 x 300 x 64", 300, 300, 64, purpose="benchmark"),
    _hidden("one stock", 1, 5),
    _hidden("63 stocks", 63, 17),
    _hidden("more than a tile", 270, 33),
    _hidden("days", 101, 20, days=(1, 60, 0, 40)),
    _hidden("gradcheck", 6, 4, purpose="gradcheck"),
    _hidden("gradcheck days", 7, 4, days=(3, 4), purpose="gradcheck"),
    _hidden("300 x 64", 300, 64, purpose="benchmark"),
]

_x = torch.zeros(4, 3)


def _bad(id: str, call, error: type[Exception], message: str, op: str = "concept_attention") -> BadInput:
    return BadInput(op, id, call, error, rf"^{op}: {message}")


BAD_INPUTS = [
    _bad("rank", lambda: ops.concept_attention(_x[0], _x), ValueError, r"x must be of shape \[N, H\], got \[3\]"),
    _bad("columns", lambda: ops.concept_attention(_x, _x[:, :2]), ValueError, r"concepts must be of shape \[4, 3\], got \[4, 2\]"),
    _bad("dtype", lambda: ops.concept_attention(_x, _x.double()), TypeError, r"concepts must be of dtype torch\.float32"),
    _bad("integers", lambda: ops.concept_attention(_x.long(), _x), TypeError, r"x must be a floating-point tensor"),
    _bad(
        "days of stocks alone",
        lambda: ops.concept_attention(_x, _x, torch.tensor([0, 2, 4])),
        ValueError,
        r"concept_offsets must be of 2 days, as offsets are, got 1 days",
    ),
    _bad(
        "concept offsets",
        lambda: ops.concept_attention(_x, _x, torch.tensor([0, 2, 4]), torch.tensor([0, 2, 3])),
        ValueError,
        r"concept_offsets must be rising from 0 to 4, got \[0, 2, 3\]",
    ),
    _bad("rank", lambda: ops.hidden_concepts(_x[0]), ValueError, r"x must be of shape \[N, H\], got \[3\]", "hidden_concepts"),
    _bad("integers", lambda: ops.hidden_concepts(_x.long()), TypeError, r"x must be a floating-point tensor", "hidden_concepts"),
    _bad(
        "offsets",
        lambda: ops.hidden_concepts(_x, torch.tensor([1, 4])),
        ValueError,
        r"offsets must be rising from 0 to 4, got \[1, 4\]",
        "hidden_concepts",
    ),
]
