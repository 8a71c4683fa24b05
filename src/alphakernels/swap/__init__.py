"""Modules of other packages that live in memory, made to run on the kernels of this one: `accelerate` and `restore`.

A swap changes the class of a module and nothing else: the object stays the same, with its parameters, buffers, hooks, mode,
device and state_dict names, whoever holds a reference to it.
"""

from __future__ import annotations

from ._accelerate import accelerate, restore
from ._report import Kept, Report, Swap

__all__ = ["Kept", "Report", "Swap", "accelerate", "restore"]
