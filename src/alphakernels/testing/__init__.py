"""What tests and benchmarks share: the cases of every op, the tolerances, and the comparisons that use them."""

from .cases import BAD_INPUTS, CASES, cases
from .comparisons import assert_close, assert_no_worse_than_eager, outputs_and_gradients
from .tolerances import TOLERANCES, Tolerance

__all__ = [
    "BAD_INPUTS",
    "CASES",
    "TOLERANCES",
    "Tolerance",
    "assert_close",
    "assert_no_worse_than_eager",
    "cases",
    "outputs_and_gradients",
]
