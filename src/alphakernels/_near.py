"""Mistyped names, answered with the nearest right one."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_LISTED = 12  # known names that a message lists when none is near


def hint(given: str, known: Iterable[str]) -> str:
    """What to add to "unknown ...": the nearest known name, or the known ones."""
    known = [str(name) for name in known]
    lower = {name.lower(): name for name in reversed(known)}
    near = difflib.get_close_matches(str(given).lower(), lower, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {lower[near[0]]!r}?"
    return f"; known: {', '.join(known[:_LISTED])}{', ...' if len(known) > _LISTED else ''}"


def check_arguments(owner: str, function: Callable, given: Mapping[str, Any]) -> None:
    """Raises unless `function` (or the constructor of a class) takes these keyword arguments, and none is missing.

    Raises:
        TypeError: naming the first wrong argument and the nearest right one, or those that are missing.
    """
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in given:
            if name not in known:
                raise TypeError(f"{owner}: unknown argument {name!r}{hint(name, known)}")
    required = [p.name for p in parameters if p.name in known and p.default is p.empty and p.name not in given]
    if required:
        raise TypeError(f"{owner}: expected the argument{'s' if len(required) > 1 else ''} {', '.join(required)}, got none")
