"""Qlib's checkpoints: state dicts written with torch.save, read as weights only, so that no code of the file is run."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from alphakernels.training import CheckpointError

# How a file of torch.save begins: a zip archive, or, of old versions of torch, the pickle of a number that marks it.
_BEGINNINGS = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")


def is_torch_file(path: str | os.PathLike[str]) -> bool:
    """Whether torch.save wrote the file, by its first bytes."""
    with open(path, "rb") as file:
        return file.read(4).startswith(_BEGINNINGS)


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a state dict, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a state dict that can be read without running code.
    """
    source = f"checkpoint {os.fspath(path)}"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch.load raises whatever the unpickler, the zip reader or the file raise
        raise CheckpointError(
            f"{source}: expected a state dict saved with torch.save, got a file that cannot be read as weights "
            f"only ({str(error).splitlines()[0]}); save the network's state_dict() and load that"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        got = ", ".join(map(repr, list(state)[:3])) if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"{source}: expected a state dict, tensors by name, got {got}")
    return dict(state)
