"""Cases of attention_pool."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ... import ops
from ...ops import _random
from ...ops.attention_pool import reference
from .case import BadInput, Case, Inputs

_SEED = torch.tensor(7 + (3 << 40))


def _case(id: str, batch: int, steps: int, hidden: int, attention: int, *, bias: bool = True, dropout: float = 0.0, **more) -> Case:
    def make(generator: torch.Generator) -> Inputs:
        return {
            "h": torch.tanh(torch.randn(batch, steps, hidden, generator=generator)),
            "weight": torch.randn(attention, hidden, generator=generator) * hidden**-0.5,
            "bias": torch.randn(attention, generator=generator) if bias else None,
            "score": torch.randn(attention, generator=generator),
        }

    def call(i: Inputs) -> dict[str, torch.Tensor]:
        draw, _random.draw_seed = _random.draw_seed, lambda device: _SEED.to(device)
        try:
            out, weights = ops.attention_pool(**i, dropout=dropout, return_weights=True)
        finally:
            _random.draw_seed = draw
        return {"out": out, "weights": weights}

    def by_reference(i: Inputs) -> dict[str, torch.Tensor]:
        found = reference.attention_pool(*i.values(), _SEED if dropout > 0 else None, dropout)
        return dict(zip(("out", "weights"), found, strict=True))

    def eager(i: Inputs) -> dict[str, torch.Tensor]:
        if dropout > 0:  # torch's own draws another mask
            return by_reference(i)
        weights = torch.softmax(F.linear(torch.tanh(F.linear(i["h"], i["weight"], i["bias"])), i["score"][None]), 1)
        out = torch.cat([i["h"][:, -1], (i["h"] * weights).sum(1)], 1)
        return {"out": out, "weights": weights.squeeze(2)}

    read = batch * steps * hidden + attention * hidden
    return Case(
        op="attention_pool",
        id=id,
        make=make,
        call=call,
        reference=by_reference,
        eager=eager,
        needs_grad=("h", "weight", *(["bias"] if bias else []), "score"),
        traffic=lambda i: (read + batch * (2 * hidden + steps), 2 * read + batch * (2 * hidden + steps)),
        **more,
    )


CASES = [
    _case("usual", 7, 60, 64, 32),
    _case("odd", 13, 11, 21, 10),
    _case("one step", 5, 1, 8, 4),
    _case("one row", 1, 37, 40, 20),
    _case("long", 2, 250, 17, 8),
    _case("no bias", 9, 5, 33, 17, bias=False),
    _case("dropout", 6, 9, 20, 10, dropout=0.3),
    _case("gradcheck", 3, 4, 4, 2, purpose="gradcheck"),
    _case("gradcheck dropout", 2, 3, 5, 3, bias=False, dropout=0.5, purpose="gradcheck"),
    _case("800 x 60, H 64", 800, 60, 64, 32, purpose="benchmark"),
]

_h, _w, _v = torch.zeros(2, 3, 4), torch.zeros(2, 4), torch.zeros(2)
_bad = [
    ("rank", lambda: ops.attention_pool(_h[0], _w, _v, _v), ValueError, r"h must be of shape \[B, T, H\], got \[3, 4\]"),
    ("dtype", lambda: ops.attention_pool(_h.int(), _w, _v, _v), TypeError, "h must be a floating-point tensor, got torch.int32"),
    ("no step", lambda: ops.attention_pool(_h[:, :0], _w, _v, _v), ValueError, r"h must be of at least one time step, got \[2, 0, 4\]"),
    ("weight", lambda: ops.attention_pool(_h, _w.t(), _v, _v), ValueError, r"weight must be of shape \[2, 4\], got \[4, 2\]"),
    ("bias", lambda: ops.attention_pool(_h, _w, _v[:1], _v), ValueError, r"bias must be of shape \[2\], got \[1\]"),
    ("score", lambda: ops.attention_pool(_h, _w, _v, _w), ValueError, r"score must be of shape \[A\], got \[2, 4\]"),
    ("probability", lambda: ops.attention_pool(_h, _w, _v, _v, dropout=-1), ValueError, "dropout must be a probability, got -1"),
]
BAD_INPUTS = [BadInput("attention_pool", id, call, error, f"^attention_pool: {message}") for id, call, error, message in _bad]
