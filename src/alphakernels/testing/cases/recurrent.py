"""Cases of recurrent."""

from __future__ import annotations

import torch

from ... import ops
from ...ops import _random
from ...ops.recurrent import reference
from ...ops.recurrent.reference import GATES
from .case import BadInput, Case, Inputs

_SEED = torch.tensor(20170304)


def _eager(i: Inputs, cell: str, layers: int, weights: list, biases: bool, batch_first: bool) -> tuple:
    """torch.nn.GRU and torch.nn.LSTM as they call it."""
    x = i["x"]
    zeros = x.new_zeros(layers, x.shape[0 if batch_first else 1], weights[1].shape[1])
    h0 = i["h0"] if i.get("h0") is not None else zeros
    options = (weights, biases, layers, 0.0, True, False, batch_first)
    if cell == "gru":
        return torch._VF.gru(x, h0, *options)
    return torch._VF.lstm(x, (h0, i["c0"] if i.get("c0") is not None else zeros), *options)


def _case(
    id: str,
    cell: str,
    batch: int,
    steps: int,
    inputs: int,
    hidden: int,
    layers: int = 1,
    *,
    biases: bool = True,
    batch_first: bool = True,
    initial: bool = False,
    sequence: bool = True,
    dropout: float = 0.0,
    **more,
) -> Case:
    lstm = cell == "lstm"
    rows = GATES[cell] * hidden
    parameters = {}
    for number in range(layers):
        width = inputs if number == 0 else hidden
        shapes = {"weight_ih": (rows, width), "weight_hh": (rows, hidden)}
        shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)} if biases else {}
        parameters |= {f"{name}_l{number}": shape for name, shape in shapes.items()}
    states = (["h0"] + ["c0"] * lstm) if initial else []

    def make(generator: torch.Generator) -> Inputs:
        x = torch.randn((batch, steps, inputs) if batch_first else (steps, batch, inputs), generator=generator)
        drawn: Inputs = {"x": x, "h0": None, "c0": None}
        drawn |= {name: torch.randn(layers, batch, hidden, generator=generator) for name in states}
        scale = hidden**-0.5
        return drawn | {name: scale * (2 * torch.rand(shape, generator=generator) - 1) for name, shape in parameters.items()}

    def named(output, h_n, c_n) -> dict[str, torch.Tensor]:
        return ({"output": output} if sequence else {}) | {"h_n": h_n} | ({"c_n": c_n} if lstm else {})

    def call(i: Inputs) -> dict[str, torch.Tensor]:
        options = dict(biases=biases, batch_first=batch_first, sequence=sequence, dropout=dropout)
        draw, _random.draw_seed = _random.draw_seed, lambda device: _SEED.to(device)
        try:
            found = ops.recurrent(i["x"], [i[name] for name in parameters], cell=cell, h0=i["h0"], c0=i["c0"], **options)
        finally:
            _random.draw_seed = draw
        return named(*found)

    def by_reference(i: Inputs) -> dict[str, torch.Tensor]:
        seed = _SEED if dropout > 0 and layers > 1 else None
        weights = [i[name] for name in parameters]
        found = reference.recurrent(i["x"], i["h0"], i["c0"], weights, seed, cell, biases, batch_first, sequence, dropout, False)
        return named(*found[:3])

    def eager(i: Inputs) -> dict[str, torch.Tensor]:
        if dropout > 0:  # torch's own draws another mask
            return by_reference(i)
        found = _eager(i, cell, layers, [i[name] for name in parameters], biases, batch_first)
        return named(*found, *([None] * (not lstm)))

    tokens = batch * steps
    held = sum(torch.Size(shape).numel() for shape in parameters.values())
    return Case(
        op="recurrent",
        id=id,
        make=make,
        call=call,
        reference=by_reference,
        eager=eager,
        needs_grad=("x", *states, *parameters),
        traffic=lambda i: (
            tokens * (inputs + hidden * layers * (6 if lstm else 5)) + held,
            tokens * (2 * inputs + hidden * layers * (6 if lstm else 5)) + 2 * held,
        ),
        **more,
    )


CASES = [
    _case("gru", "gru", 7, 11, 6, 20, 2),
    _case("lstm", "lstm", 7, 11, 6, 20, 2),
    _case("gru, one row, one step", "gru", 1, 1, 3, 5),
    _case("lstm, one row, one step", "lstm", 1, 1, 3, 5),
    _case("gru, initial state", "gru", 5, 4, 9, 17, 3, initial=True),
    _case("lstm, initial state", "lstm", 5, 4, 9, 17, 3, initial=True),
    _case("gru, time first, no biases", "gru", 6, 5, 4, 33, 2, biases=False, batch_first=False),
    _case("lstm, time first, no biases", "lstm", 6, 5, 4, 33, 2, biases=False, batch_first=False),
    _case("gru, last state alone", "gru", 70, 9, 6, 16, 2, sequence=False),
    _case("lstm, last state alone", "lstm", 70, 9, 6, 16, 2, sequence=False),
    _case("gru, dropout", "gru", 13, 6, 3, 18, 3, dropout=0.4),
    _case("lstm, dropout", "lstm", 13, 6, 3, 18, 3, dropout=0.4),
    _case("gradcheck gru", "gru", 2, 3, 2, 3, 2, initial=True, purpose="gradcheck"),
    _case("gradcheck lstm", "lstm", 2, 3, 2, 3, 2, initial=True, purpose="gradcheck"),
    _case("gradcheck gru, dropout, time first", "gru", 3, 2, 2, 3, 2, dropout=0.5, batch_first=False, purpose="gradcheck"),
    _case("gradcheck lstm, last state alone", "lstm", 3, 2, 2, 2, 2, sequence=False, biases=False, purpose="gradcheck"),
    _case("gru 160 x 30, H 64", "gru", 160, 30, 6, 64, 2, purpose="benchmark"),
    _case("lstm 160 x 30, H 64", "lstm", 160, 30, 6, 64, 2, purpose="benchmark"),
]


def _weights(rows: int = 12, inputs: int = 3) -> list[torch.Tensor]:
    return [torch.zeros(rows, inputs), torch.zeros(rows, 4), torch.zeros(rows), torch.zeros(rows)]


_x = torch.zeros(2, 5, 3)
_bad = [
    ("cell", lambda: ops.recurrent(_x, _weights(), cell="rnn"), ValueError, "cell must be 'gru' or 'lstm', got 'rnn'"),
    ("rank", lambda: ops.recurrent(_x[0], _weights(), cell="gru"), ValueError, r"x must be of shape \[B, T, I\], got \[5, 3\]"),
    ("dtype", lambda: ops.recurrent(_x.long(), _weights(), cell="gru"), TypeError, "x must be a floating-point tensor, got torch.int64"),
    (
        "no step",
        lambda: ops.recurrent(_x[:, :0], _weights(), cell="gru"),
        ValueError,
        r"x must be of at least one time step, got \[2, 0, 3\]",
    ),
    (
        "weights of another cell",
        lambda: ops.recurrent(_x, _weights(), cell="lstm"),
        ValueError,
        r"weight_ih_l0 must be of shape \[16, 3\], got \[12, 3\]",
    ),
    (
        "number of weights",
        lambda: ops.recurrent(_x, _weights()[:3], cell="gru"),
        ValueError,
        "weights must be 4 tensors a layer, got 3 tensors",
    ),
    (
        "features",
        lambda: ops.recurrent(_x, _weights(inputs=2), cell="gru"),
        ValueError,
        r"x must be of 2 features, as weight_ih_l0 has columns, got \[2, 5, 3\]",
    ),
    (
        "state",
        lambda: ops.recurrent(_x, _weights(), cell="gru", h0=torch.zeros(1, 3, 4)),
        ValueError,
        r"h0 must be of shape \[1, 2, 4\], got \[1, 3, 4\]",
    ),
    (
        "cell state of a GRU",
        lambda: ops.recurrent(_x, _weights(), cell="gru", c0=torch.zeros(1, 2, 4)),
        ValueError,
        "c0 must be None for a GRU, got a tensor",
    ),
    ("probability", lambda: ops.recurrent(_x, _weights(), cell="gru", dropout=1.5), ValueError, "dropout must be a probability, got 1.5"),
]
BAD_INPUTS = [BadInput("recurrent", id, call, error, f"^recurrent: {message}") for id, call, error, message in _bad]
