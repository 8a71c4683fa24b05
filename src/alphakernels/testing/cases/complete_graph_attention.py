"""Cases of complete_graph_attention."""

from __future__ import annotations

import torch

from ... import ops
from ...ops.complete_graph_attention import reference
from ..tolerances import TOLERANCES
from .case import BadInput, Case, Inputs


def _case(id: str, n: int, hidden: int, *, days: tuple[int, ...] = (), slope: float = 0.01, spread: float = 1.0, **more) -> Case:
    """`days`: numbers of stocks; `spread`: of the scores."""
    offsets = torch.tensor([0, *days]).cumsum(0) if days else None

    def there(h: torch.Tensor) -> torch.Tensor | None:
        return None if offsets is None else offsets.to(h.device)

    def make(generator: torch.Generator) -> Inputs:
        s, t = (spread * torch.randn(n, generator=generator) for _ in range(2))
        return {"s": s, "t": t, "h": torch.randn(n, hidden, generator=generator)}

    def call(i: Inputs) -> dict[str, torch.Tensor]:
        return {"out": ops.complete_graph_attention(i["s"], i["t"], i["h"], slope, there(i["h"]))}

    def by_reference(i: Inputs) -> dict[str, torch.Tensor]:
        return {"out": reference.complete_graph_attention(i["s"], i["t"], i["h"], there(i["h"]), slope, True)[0]}

    return Case(
        op="complete_graph_attention",
        id=id,
        make=more.pop("make", make),
        call=call,
        reference=by_reference,
        eager=by_reference,
        needs_grad=more.pop("needs_grad", ("s", "t", "h")),
        traffic=lambda i: (2 * n * (hidden + 1), n * (4 * hidden + 4)),
        **more,
    )


def _no_kinks(generator: torch.Generator) -> Inputs:
    """Scores of which no pair sums to nearly zero."""
    s = torch.arange(7.0)[torch.randperm(7, generator=generator)] - 3.0
    t = torch.arange(7.0)[torch.randperm(7, generator=generator)] - 3.5
    return {"s": 0.4 * s, "t": 0.4 * t, "h": torch.randn(7, 3, generator=generator)}


CASES = [
    # Its scores have no gradient: a difference of equal numbers, which rounding leaves at 1e-8 where the reference has zero.
    _case("one stock", 1, 5, needs_grad=("h",)),
    # Gradients that are nothing but the rounding of float64.
    _case("two stocks", 2, 3, half_tolerance=TOLERANCES[torch.bfloat16]._replace(absolute=1e-6)),
    _case("63 stocks", 63, 17),
    _case("300 stocks", 300, 64),
    _case("one column", 130, 1, spread=3.0),
    # A score of 10 in half precision errs by a hundredth, and so does its exponential.
    _case("steep", 77, 20, slope=0.3, spread=4.0, half_tolerance=TOLERANCES[torch.bfloat16]),
    _case("days", 139, 33, days=(1, 64, 0, 9, 65)),
    _case("gradcheck", 7, 3, purpose="gradcheck", make=_no_kinks),
    _case("gradcheck days", 7, 3, days=(3, 4), purpose="gradcheck", make=_no_kinks),
    _case("300 x 64", 300, 64, purpose="benchmark"),
    _case("1000 x 64", 1000, 64, purpose="benchmark"),
    _case("8 days of 300 x 64", 2400, 64, days=(300,) * 8, purpose="benchmark"),
]

_s, _h = torch.zeros(4), torch.zeros(4, 3)


def _bad(id: str, call, error: type[Exception], message: str) -> BadInput:
    return BadInput("complete_graph_attention", id, call, error, r"^complete_graph_attention: " + message)


def _offsets(*values: int):
    return lambda: ops.complete_graph_attention(_s, _s, _h, offsets=torch.tensor(values))


BAD_INPUTS = [
    _bad("rank", lambda: ops.complete_graph_attention(_s, _s, _s), ValueError, r"h must be of shape \[N, H\], got \[4\]"),
    _bad("integers", lambda: ops.complete_graph_attention(_s, _s, _h.long()), TypeError, r"h must be a floating-point tensor"),
    _bad("s too long", lambda: ops.complete_graph_attention(torch.zeros(5), _s, _h), ValueError, r"s must be of shape \[4\], got \[5\]"),
    _bad("t as a column", lambda: ops.complete_graph_attention(_s, _s[:, None], _h), ValueError, r"t must be of shape \[4\]"),
    _bad("t in float64", lambda: ops.complete_graph_attention(_s, _s.double(), _h), TypeError, r"t must be of dtype torch\.float32"),
    _bad("slope", lambda: ops.complete_graph_attention(_s, _s, _h, 1.5), ValueError, r"negative_slope must be in \[0, 1\], got 1\.5"),
    _bad("offsets end early", _offsets(0, 2, 3), ValueError, r"offsets must be rising from 0 to 4, got \[0, 2, 3\]"),
    _bad("offsets fall", _offsets(0, 3, 2, 4), ValueError, r"offsets must be rising from 0 to 4"),
    _bad(
        "offsets in floating point",
        lambda: ops.complete_graph_attention(_s, _s, _h, offsets=torch.tensor([0.0, 4.0])),
        TypeError,
        r"offsets must be of dtype torch\.int64",
    ),
    _bad(
        "offsets as a list",
        lambda: ops.complete_graph_attention(_s, _s, _h, offsets=[0, 4]),
        TypeError,
        r"offsets must be a torch\.Tensor, got list",
    ),
]
