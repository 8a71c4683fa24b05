"""Cases of sfm."""

from __future__ import annotations

import torch

from ... import ops
from ...ops.sfm import reference
from .case import BadInput, Case, Inputs

_PARAMETERS = ("weight_x", "weight_h", "bias", "weight_a", "bias_a")


def _draw(generator: torch.Generator, batch: int, steps: int, features: int, hidden: int, frequencies: int, masked: bool) -> Inputs:
    def randn(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return scale * torch.randn(shape, generator=generator)

    width = 4 * hidden + frequencies
    inputs = {
        "x": randn(batch, steps, features),
        "weight_x": randn(features, width, scale=features**-0.5),
        "weight_h": randn(hidden, width, scale=hidden**-0.5),
        "bias": randn(width, scale=0.5),
        "weight_a": randn(frequencies, scale=frequencies**-0.5),
        "bias_a": randn(hidden, scale=0.3),
        "waves": ops.fourier_waves(steps, frequencies, dtype=torch.float32),
        "hidden_mask": None,
    }
    if masked:
        inputs["hidden_mask"] = (torch.rand(batch, hidden, generator=generator) < 0.7) / 0.7
    return inputs


def _traffic(i: Inputs) -> tuple[int, int]:
    """x, the hidden states, the gates and the parameters, each once a pass: all else fits in the cache."""
    batch, steps, _ = i["x"].shape
    kept = batch * steps * (i["bias_a"].numel() + i["bias"].numel())
    parameters = sum(i[name].numel() for name in _PARAMETERS)
    return i["x"].numel() + kept + parameters, i["x"].numel() + kept + 2 * parameters


def _case(id: str, *sizes: int, masked: bool = False, **more) -> Case:
    """sizes: B, T, D, H, F."""

    def by_reference(i: Inputs) -> dict[str, torch.Tensor]:
        return {"h": reference.sfm(**i, training=False)[0]}

    return Case(
        op="sfm",
        id=id,
        make=lambda g: _draw(g, *sizes, masked),
        call=lambda i: {"h": ops.sfm(**i)},
        reference=by_reference,
        eager=by_reference,
        needs_grad=("x", *_PARAMETERS),
        traffic=_traffic,
        **more,
    )


CASES = [
    _case("odd sizes", 7, 4, 3, 20, 6),
    _case("one of everything", 1, 1, 1, 1, 1),
    _case("one step", 5, 1, 2, 7, 3),
    _case("whole registers", 2, 2, 6, 64, 25),
    _case("more units than a block", 2, 2, 2, 85, 2),
    _case("more steps than a segment", 3, 11, 1, 5, 4),
    _case("more rows than a tile", 19, 2, 5, 8, 3),
    _case("hidden mask", 6, 3, 3, 17, 4, masked=True),
    _case("gradcheck", 3, 3, 2, 3, 2, purpose="gradcheck"),
    _case("gradcheck hidden mask", 2, 3, 1, 2, 3, masked=True, purpose="gradcheck"),
    _case("72 x 60, H 64, F 25", 72, 60, 6, 64, 25, purpose="benchmark"),
]


def _call(**changes):
    """A call whose arguments are right but for these."""
    inputs = _draw(torch.Generator().manual_seed(0), 3, 4, 2, 5, 3, masked=True)
    return ops.sfm(**{**inputs, **changes})


BAD_INPUTS = [
    BadInput("sfm", id, lambda changes=changes: _call(**changes), error, message)
    for id, changes, error, message in [
        ("two axes", {"x": torch.zeros(3, 8)}, ValueError, r"^sfm: x must be of shape \[B, T, D\], got \[3, 8\]"),
        ("no steps", {"x": torch.zeros(3, 0, 2)}, ValueError, r"x must be of at least one step \[B, T, D\], got \[3, 0, 2\]"),
        ("integers", {"x": torch.zeros(3, 4, 2).long()}, TypeError, r"x must be a floating-point tensor, got torch\.int64"),
        ("other features", {"x": torch.zeros(3, 4, 1)}, ValueError, r"weight_x must be of shape \[1, 23\], got \[2, 23\]"),
        ("gates missing", {"weight_h": torch.zeros(5, 20)}, ValueError, r"weight_h must be of shape \[5, 23\], got \[5, 20\]"),
        ("bias of a row", {"bias": torch.zeros(1, 23)}, ValueError, r"bias must be of shape \[23\], got \[1, 23\]"),
        ("column of weights", {"weight_a": torch.zeros(3, 1)}, ValueError, r"weight_a must be of shape \[F\], got \[3, 1\]"),
        ("no bias", {"bias_a": None}, TypeError, r"bias_a must be a torch\.Tensor, got NoneType"),
        ("other dtype", {"bias": torch.zeros(23).double()}, TypeError, r"bias must be of dtype torch\.float32, got torch\.float64"),
        ("other device", {"bias_a": torch.zeros(5, device="meta")}, ValueError, r"bias_a must be on cpu, got meta"),
        ("waves of other steps", {"waves": torch.zeros(3, 2, 3)}, ValueError, r"waves must be of shape \[4, 2, 3\], got \[3, 2, 3\]"),
        ("mask of one row", {"hidden_mask": torch.ones(1, 5)}, ValueError, r"hidden_mask must be of shape \[3, 5\], got \[1, 5\]"),
        (
            "mask that is learned",
            {"hidden_mask": torch.ones(3, 5, requires_grad=True)},
            ValueError,
            "hidden_mask must be a constant, got a tensor that requires a gradient",
        ),
    ]
]
