"""What `accelerate` did, module by module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

_NAMED = 3  # modules named in one line of the report


@dataclass(frozen=True)
class Swap:
    """A swapped module.

    Attributes:
        name: its name in the model ("" is the model itself).
        original: the full name of its class.
        error: the largest relative distance from the original in float64 that was seen, of outputs and gradients; None where
            it was not verified.
    """

    name: str
    original: str
    error: float | None = None


@dataclass(frozen=True)
class Kept:
    """A module for whose class there is a kernel, and why it was not swapped."""

    name: str
    original: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What was swapped, what was not and why.

    Attributes:
        swapped: the swapped modules, submodules before the modules that hold them.
        kept: modules of classes that are known here, which were not swapped.
        others: number of modules by class which have weights and no kernel here.
    """

    swapped: list[Swap] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    others: Mapping[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.swapped)

    def __str__(self) -> str:
        lines = []
        for original, swaps in _by(self.swapped, lambda swap: swap.original).items():
            errors = [swap.error for swap in swaps if swap.error is not None]
            how = f"verified, error at most {max(errors):.1e}" if errors else "not verified"
            lines.append(f"swapped  {len(swaps)} x {original} ({how})")
        for (original, reason), kept in _by(self.kept, lambda one: (one.original, one.reason)).items():
            where = ", ".join(one.name or "the model" for one in kept[:_NAMED]) + (", ..." if len(kept) > _NAMED else "")
            lines.append(f"kept     {len(kept)} x {original} ({where}): {reason}")
        lines += [f"kept     {count} x {name}: no kernel here" for name, count in self.others.items()]
        return "\n".join(lines) or "nothing to swap: the model has no module with weights"


def _by(items: list, key: Callable) -> dict:
    groups: dict = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
