"""What the cases of ghost_batch_norm, glu_block and glu_layer have in common: a norm's inputs, and the arguments both refuse."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import batch_norm

from ...ops.ghost_batch_norm.reference import chunk_sizes
from .case import BadInput, Inputs

MOMENTUM, EPS = 0.07, 1e-5
COLUMNS = ("weight", "bias", "running_mean", "running_var", "linear_bias")


def norm_inputs(generator: torch.Generator, name: str, rows: int, features: int, given: tuple[str, ...]) -> Inputs:
    """Columns of different means and deviations, and those of COLUMNS that are `given`, the others None."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def positive(*shape: int) -> Tensor:
        return 0.5 + torch.rand(shape, generator=generator)

    columns = {
        "weight": positive(features),
        "bias": normal(features),
        "running_mean": normal(features),
        "running_var": positive(features),
        "linear_bias": normal(features),
    }
    x = normal(rows, features) * positive(features) + normal(features)
    return {name: x} | {column: t if column in given else None for column, t in columns.items()}


def copied_statistics(i: Inputs) -> Inputs:
    """The inputs with copies of the running statistics, which the call may update."""
    return i | {k: i[k].clone() for k in ("running_mean", "running_var") if i[k] is not None}


def eager_norm(
    x: Tensor, i: Inputs, virtual_batch_size: int, training: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """y and the running statistics by torch's batch_norm, virtual batch after virtual batch, as Qlib's GBN has it."""
    if i["linear_bias"] is not None:
        x = x + i["linear_bias"]
    mean, var = (i[k].clone() if i[k] is not None else None for k in ("running_mean", "running_var"))
    pieces = x.split(chunk_sizes(x.shape[0], virtual_batch_size)) if training else [x]
    y = [batch_norm(piece, mean, var, i["weight"], i["bias"], training, MOMENTUM, EPS) for piece in pieces]
    return torch.cat(y), mean, var


def bad_norm_inputs(op: str, what: str, function: Callable) -> list[BadInput]:
    """What `check_norm_arguments` refuses, as messages of `op`, whose input of [6, 4] is called `what`."""
    x, four = torch.randn(6, 4), torch.ones(4)
    rows = "of more than one row in every virtual batch when training"
    table = {
        "integers": (
            lambda: function(x.long(), virtual_batch_size=3),
            TypeError,
            rf"{what} must be a floating-point tensor",
        ),
        "one-dimensional": (
            lambda: function(four, virtual_batch_size=3),
            ValueError,
            rf"{what} must be of shape \[B, 2?[FH]\], got \[4\]",
        ),
        "three-dimensional": (
            lambda: function(x[None], virtual_batch_size=3),
            ValueError,
            rf"{what} must be of shape \[B, 2?[FH]\], got \[1, 6, 4\]",
        ),
        "virtual batch size 0": (
            lambda: function(x, virtual_batch_size=0),
            ValueError,
            "virtual_batch_size must be at least 1, got 0",
        ),
        "weight too short": (
            lambda: function(x, four[:3], virtual_batch_size=3),
            ValueError,
            r"weight must be of shape \[4\], got \[3\]",
        ),
        "bias on another device": (
            lambda: function(x, four, four.to("meta"), virtual_batch_size=3),
            ValueError,
            "bias must be on cpu, got meta",
        ),
        "half of the running statistics": (
            lambda: function(x, running_mean=four, virtual_batch_size=3),
            ValueError,
            "running_mean and running_var must be given together",
        ),
        "one row": (lambda: function(x[:1], virtual_batch_size=3), ValueError, f"{what} must be {rows}, got 1 rows"),
        "no rows": (lambda: function(x[:0], virtual_batch_size=3), ValueError, f"{what} must be {rows}, got 0 rows"),
        "virtual batches of one row": (
            lambda: function(x, virtual_batch_size=1),
            ValueError,
            f"{what} must be {rows}, got 6 rows in virtual batches of 1",
        ),
    }
    return [BadInput(op, id, call, error, f"^{op}: {message}") for id, (call, error, message) in table.items()]
