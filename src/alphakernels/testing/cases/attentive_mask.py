"""Cases of attentive_mask."""

from __future__ import annotations

import torch

from ... import ops
from ...ops.attentive_mask import reference
from ..tolerances import TOLERANCES
from .case import BadInput, Case, Inputs
from .sparsemax import away_from_ties

RELAX, EPS = 1.3, 1e-10


def _case(id: str, rows: int, features: int, *, ones: bool = False, update: bool = False, **more) -> Case:
    def make(generator: torch.Generator) -> Inputs:
        logits = torch.randn(rows, features, generator=generator)
        prior = torch.ones(rows, features) if ones else 0.25 + torch.rand(rows, features, generator=generator)
        return {"logits": logits, "prior": prior}

    def call(i: Inputs) -> dict[str, torch.Tensor]:
        got = ops.attentive_mask(i["logits"], i["prior"], RELAX, update_prior=update, eps=EPS)
        return {"mask": got.mask, "entropy": got.entropy} | ({"new_prior": got.new_prior} if update else {})

    def by_reference(i: Inputs) -> dict[str, torch.Tensor]:
        mask, entropy, new_prior = reference.attentive_mask(i["logits"], i["prior"], RELAX, update, EPS)
        return {"mask": mask, "entropy": entropy.sum() / mask.numel()} | ({"new_prior": new_prior} if update else {})

    def traffic(i: Inputs) -> tuple[int, int]:
        n = i["logits"].numel()
        return (3 + update) * n, (4 + update + 2 * (not ones)) * n

    return Case(
        op="attentive_mask",
        id=id,
        make=more.pop("make", make),
        call=call,
        reference=by_reference,
        eager=by_reference,
        needs_grad=("logits",) if ones else ("logits", "prior"),
        traffic=traffic,
        **more,
    )


def _far(generator: torch.Generator) -> Inputs:
    prior = 0.25 + torch.rand(4, 6, generator=generator)
    return {"logits": away_from_ties(generator, 4, 6) / prior, "prior": prior}


CASES = [
    _case("ones", 129, 31, ones=True),
    _case("prior", 65, 13),
    _case("prior updated", 33, 158, update=True),
    _case("ones updated", 17, 9, ones=True, update=True),
    # The mask is one, and its entropy -log(1 + 1e-10), which float32 rounds to zero.
    _case(
        "one feature", 5, 1, update=True, tolerance=TOLERANCES[torch.float32]._replace(absolute=1e-9),
        half_tolerance=TOLERANCES[torch.bfloat16]._replace(absolute=1e-9),
    ),
    _case("gradcheck", 4, 6, purpose="gradcheck", make=_far),
    _case("gradcheck updated", 4, 6, update=True, purpose="gradcheck", make=_far),
    _case("4096 x 158", 4096, 158, ones=True, purpose="benchmark"),
    _case("4096 x 158 updated", 4096, 158, update=True, purpose="benchmark"),
]

_x = torch.zeros(3, 4)
BAD_INPUTS = [
    BadInput(
        "attentive_mask",
        "rank",
        lambda: ops.attentive_mask(torch.zeros(4), torch.zeros(4)),
        ValueError,
        r"attentive_mask: logits must be of shape \[B, D\], got \[4\]",
    ),
    BadInput(
        "attentive_mask",
        "prior of another shape",
        lambda: ops.attentive_mask(_x, torch.zeros(1, 4)),
        ValueError,
        r"attentive_mask: prior must be of shape \[3, 4\], got \[1, 4\]",
    ),
    BadInput(
        "attentive_mask",
        "prior of another dtype",
        lambda: ops.attentive_mask(_x, _x.double()),
        TypeError,
        r"attentive_mask: prior must be of dtype torch\.float32, got torch\.float64",
    ),
    BadInput(
        "attentive_mask",
        "prior on another device",
        lambda: ops.attentive_mask(_x, _x.to("meta")),
        ValueError,
        r"attentive_mask: prior must be on cpu, got meta",
    ),
    BadInput(
        "attentive_mask",
        "prior not a tensor",
        lambda: ops.attentive_mask(_x, 1.0),
        TypeError,
        r"attentive_mask: prior must be a torch\.Tensor, got float",
    ),
    BadInput(
        "attentive_mask",
        "integers",
        lambda: ops.attentive_mask(_x.long(), _x),
        TypeError,
        r"attentive_mask: logits must be a floating-point tensor, got torch\.int64",
    ),
]
