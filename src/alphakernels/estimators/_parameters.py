"""What the hyper-parameters that estimators share may be, told by name before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

# The least of each integer; None, where a class takes it, is for the class to read.
_INTEGERS = {"n_epochs": 0, "pretrain_n_epochs": 0, "n_shared": 0, "n_ind": 0, "seed": 0} | dict.fromkeys(
    (
        "d_feat", "hidden_size", "d_model", "nhead", "num_layers", "dim_feedforward", "freq_dim", "output_dim", "out_dim", "n_d", "n_a",
        "n_steps", "vbs", "batch_size", "days_per_step", "early_stop", "early_stop_rounds", "max_steps", "eval_steps",
    ),
    1,
)  # fmt: skip
_OPTIONAL = ("d_feat", "early_stop", "seed")
_MOST = {"seed": 2**32 - 1}  # of NumPy's RandomState
_NOT_NEGATIVE = ("lr", "weight_decay", "reg", "relax", "lambda_sparse")
_PROBABILITIES = ("dropout", "dropout_W", "dropout_U", "ps")


def check_parameters(owner: str, parameters: Mapping[str, Any]) -> None:
    """Raises ValueError for an argument known here that is of another kind or out of its range; NumPy's numbers are numbers."""
    for name, value in parameters.items():
        if name in _INTEGERS:
            least, most = _INTEGERS[name], _MOST.get(name, math.inf)
            expected = f"an integer of at least {least}" if most == math.inf else f"an integer from {least} to {most}"
            expected += " or None" * (name in _OPTIONAL)
            right = value is None and name in _OPTIONAL or _is(value, Integral) and least <= value <= most
        elif name in _NOT_NEGATIVE:
            expected, right = "a finite number of at least 0", _is(value, Real) and 0 <= value < math.inf
        elif name in _PROBABILITIES:
            expected, right = "a probability, a number from 0 to 1", _is(value, Real) and 0 <= value <= 1
        else:
            continue
        if not right:
            raise ValueError(f"{owner}: {name} must be {expected}, got {value!r}")


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
