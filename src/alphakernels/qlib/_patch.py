"""Qlib's own names answered with our classes, so that no config changes."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from ._models import TABLE

# What `patch` replaced: (module, name, the original).
_replaced: list[tuple[ModuleType, str, type]] = []


def patch() -> list[str]:
    """Lets the classes of `qlib.contrib.model.pytorch_*` resolve to ours, in configs and in imports from now on.

    Names that were imported from these modules before keep the originals. Calling it twice is calling it once; `unpatch` undoes it.

    Returns:
        The import paths that are answered with ours.
    """
    package = importlib.import_module("qlib.contrib.model")
    for path, ours in TABLE.items():
        module_name, _, name = path.rpartition(".")
        module = importlib.import_module(module_name)
        original = getattr(module, name)
        if original is ours:
            continue
        _replace(module, name, ours)
        for other, value in list(vars(package).items()):  # which imports some of the classes
            if value is original:
                _replace(package, other, ours)
    return list(TABLE)


def _replace(module: ModuleType, name: str, ours: type) -> None:
    _replaced.append((module, name, getattr(module, name)))
    setattr(module, name, ours)


def unpatch() -> None:
    """Undoes `patch`."""
    while _replaced:
        module, name, original = _replaced.pop()
        setattr(module, name, original)


@contextmanager
def patched() -> Iterator[None]:
    """`patch` for a block."""
    patch()
    try:
        yield
    finally:
        unpatch()
