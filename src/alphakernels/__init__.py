"""Compiled kernels for the deep models of quantitative research, from one operator up to a trained model."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version

from . import ops
from .ops._backend import explain, use_backend
from .ops._library import empty_cache

try:
    __version__ = version("alphakernels")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

_LAZY = ("data", "estimators", "models", "nn", "plotting", "swap", "testing", "training")
_LAZY_FUNCTIONS = {"accelerate": "swap", "restore": "swap"}

__all__ = ["__version__", "accelerate", "empty_cache", "explain", "ops", "restore", "use_backend", *_LAZY]


def __getattr__(name: str):
    # pandas, matplotlib and tqdm are imported by the packages that need them, when they are first used.
    if name in _LAZY:
        return importlib.import_module(f".{name}", __name__)
    if name in _LAZY_FUNCTIONS:
        return getattr(importlib.import_module(f".{_LAZY_FUNCTIONS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
