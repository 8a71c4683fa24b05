"""The cases of every op: each module of this package holds those of one op, and is found by being here."""

from __future__ import annotations

import importlib
import pkgutil

from .case import BadInput, Case

CASES: list[Case] = []
BAD_INPUTS: list[BadInput] = []

for _found in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f".{_found.name}", __name__)
    CASES += getattr(_module, "CASES", [])
    BAD_INPUTS += getattr(_module, "BAD_INPUTS", [])


def cases(purpose: str) -> list[Case]:
    """The cases made for one purpose: "contract", "gradcheck" or "benchmark"."""
    return [case for case in CASES if case.purpose == purpose]


__all__ = ["BAD_INPUTS", "CASES", "BadInput", "Case", "cases"]
