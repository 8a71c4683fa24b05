"""Cases of sparsemax."""

from __future__ import annotations

import torch

from ... import ops
from ...ops.sparsemax import reference
from ..tolerances import Tolerance
from .case import BadInput, Case, Inputs


def _case(id: str, shape: tuple[int, ...], dim: int = -1, spread: float = 1.0, **more) -> Case:
    def make(generator: torch.Generator) -> Inputs:
        return {"x": spread * torch.randn(shape, generator=generator)}

    def by_reference(i: Inputs) -> dict[str, torch.Tensor]:
        return {"p": reference.sparsemax(i["x"].movedim(dim, -1)).movedim(-1, dim)}

    return Case(
        op="sparsemax",
        id=id,
        make=more.pop("make", make),
        call=lambda i: {"p": ops.sparsemax(i["x"], dim)},
        reference=by_reference,
        eager=by_reference,
        needs_grad=("x",),
        traffic=lambda i: (2 * i["x"].numel(), 3 * i["x"].numel()),
        **more,
    )


def away_from_ties(generator: torch.Generator, rows: int, columns: int, margin: float = 0.01) -> torch.Tensor:
    """Rows [rows, columns] whose entries all keep `margin` from the threshold, where sparsemax has a kink."""
    kept = torch.empty(0, columns)
    while kept.shape[0] < rows:
        x = torch.randn(rows, columns, generator=generator)
        top = x.double() - x.double().amax(-1, keepdim=True)
        far = ((top - reference.threshold(top)).abs() > margin).all(-1)
        kept = torch.cat([kept, x[far]])
    return kept[:rows]


CASES = [
    _case("rows", (257, 31)),
    _case("one vector of lanes and a tail", (19, 17)),
    _case("wide", (5, 1003)),
    _case("long rows", (5, 4111)),
    _case("one column", (9, 1)),
    _case("vector", (13,)),
    # Two or three entries share one: their gradients are small differences of large ones.
    _case("spread out", (33, 40), spread=5.0, half_tolerance=Tolerance(5e-2, 5e-2)),
    _case("all in the support", (33, 40), spread=1e-3),
    _case("dim 0", (37, 11), dim=0),
    _case("middle dim", (3, 17, 5), dim=1),
    _case("negative dim", (4, 6, 7), dim=-3),
    _case("gradcheck", (4, 7), purpose="gradcheck", make=lambda g: {"x": away_from_ties(g, 4, 7)}),
    _case(
        "gradcheck dim 0",
        (6, 3),
        dim=0,
        purpose="gradcheck",
        make=lambda g: {"x": away_from_ties(g, 3, 6).T.contiguous()},
    ),
    _case("4096 x 158", (4096, 158), purpose="benchmark"),
    _case("65536 x 64", (65536, 64), purpose="benchmark"),
    _case("512 x 4096", (512, 4096), purpose="benchmark"),
]

BAD_INPUTS = [
    BadInput(
        "sparsemax",
        "integers",
        lambda: ops.sparsemax(torch.arange(3)),
        TypeError,
        r"sparsemax: x must be a floating-point tensor, got torch\.int64",
    ),
    BadInput(
        "sparsemax",
        "a list",
        lambda: ops.sparsemax([1.0, 2.0]),
        TypeError,
        r"sparsemax: x must be a torch\.Tensor, got list",
    ),
    BadInput(
        "sparsemax",
        "dim too large",
        lambda: ops.sparsemax(torch.zeros(2, 3), 2),
        IndexError,
        r"sparsemax: dim must be in \[-2, 1\], got 2",
    ),
    BadInput(
        "sparsemax",
        "dim too small",
        lambda: ops.sparsemax(torch.zeros(2, 3), -3),
        IndexError,
        r"sparsemax: dim must be in \[-2, 1\], got -3",
    ),
]
