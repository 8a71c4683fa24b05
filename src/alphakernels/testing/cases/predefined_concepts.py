"""Cases of predefined_concepts."""

from __future__ import annotations

import torch

from ... import ops
from ...ops.predefined_concepts import reference
from .case import BadInput, Case, Inputs


def _case(id: str, n: int, k: int, hidden: int, *, density: float = 0.2, days: tuple[int, ...] = (), stocks: int = 0, **more) -> Case:
    """`density`: of the membership, weights from 0.5 to 1.5 where there are any. `stocks`: rows of it, when a row is chosen for each."""
    offsets = torch.tensor([0, *days]).cumsum(0) if days else None
    rows = torch.randint(stocks, (n,), generator=torch.Generator().manual_seed(5)) if stocks else None

    def make(generator: torch.Generator) -> Inputs:
        shape = (stocks or n, k)
        there = torch.rand(shape, generator=generator) < density
        member = (0.5 + torch.rand(shape, generator=generator)) * there
        return {"x": torch.randn(n, hidden, generator=generator), "membership": member}

    def where(i: Inputs) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return tuple(None if t is None else t.to(i["x"].device) for t in (offsets, rows))

    def by_reference(i: Inputs) -> dict[str, torch.Tensor]:
        return {"concepts": reference.predefined_concepts(i["x"], i["membership"], *where(i))[0]}

    return Case(
        op="predefined_concepts",
        id=id,
        make=make,
        call=lambda i: {"concepts": ops.predefined_concepts(i["x"], i["membership"], *where(i))},
        reference=by_reference,
        eager=by_reference,
        needs_grad=("x",),
        traffic=lambda i: (n * hidden + n * k + k * hidden, n * hidden + n * k + k * hidden),
        **more,
    )


CASES = [
    _case("one of each", 1, 1, 5, density=1),
    _case("63 stocks", 63, 31, 17),
    _case("everybody in all", 37, 45, 70, density=1),
    _case("days", 101, 77, 20, days=(1, 60, 0, 40)),
    _case("rows", 80, 40, 33, days=(30, 50), stocks=23),
    _case("gradcheck", 5, 4, 3, density=0.5, purpose="gradcheck"),
    _case("gradcheck days", 6, 5, 3, density=0.5, days=(2, 4), stocks=9, purpose="gradcheck"),
    _case("300 x 733 x 64", 300, 733, 64, density=0.05, stocks=734, purpose="benchmark"),
]

_x, _m = torch.zeros(4, 3), torch.zeros(4, 2)


def _bad(id: str, call, error: type[Exception], message: str) -> BadInput:
    return BadInput("predefined_concepts", id, call, error, rf"^predefined_concepts: {message}")


BAD_INPUTS = [
    _bad("rank", lambda: ops.predefined_concepts(_x[0], _m), ValueError, r"x must be of shape \[N, H\], got \[3\]"),
    _bad("integers", lambda: ops.predefined_concepts(_x.long(), _m), TypeError, r"x must be a floating-point tensor"),
    _bad("no tensor", lambda: ops.predefined_concepts(_x, [1]), TypeError, r"membership must be a torch.Tensor, got list"),
    _bad("stocks", lambda: ops.predefined_concepts(_x, _m[:3]), ValueError, r"membership must be of shape \[4, K\], got \[3, 2\]"),
    _bad("membership", lambda: ops.predefined_concepts(_x, _m[0]), ValueError, r"membership must be of shape \[4, K\], got \[2\]"),
    _bad(
        "offsets",
        lambda: ops.predefined_concepts(_x, _m, torch.tensor([0, 3])),
        ValueError,
        r"offsets must be rising from 0 to 4, got \[0, 3\]",
    ),
    _bad(
        "dtype of rows",
        lambda: ops.predefined_concepts(_x, _m, None, torch.zeros(4)),
        TypeError,
        r"rows must be of dtype torch.int64, got torch.float32",
    ),
    _bad("rows", lambda: ops.predefined_concepts(_x, _m, None, torch.arange(3)), ValueError, r"rows must be of shape \[4\], got \[3\]"),
    _bad(
        "beyond the rows",
        lambda: ops.predefined_concepts(_x, _m, None, torch.tensor([0, 1, 4, 2])),
        ValueError,
        r"rows must be from 0 to 3, got 0 to 4",
    ),
    _bad(
        "negative rows",
        lambda: ops.predefined_concepts(_x, _m, None, torch.tensor([0, 1, -1, 2])),
        ValueError,
        r"rows must be from 0 to 3, got -1 to 2",
    ),
]
