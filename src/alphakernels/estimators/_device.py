"""Where an estimator computes, in any of the ways people say it, and its random numbers, apart from the user's."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_LOCK = threading.RLock()


def _new_lock() -> None:
    """In a process that was forked while another thread was in the block, nobody would ever release the lock."""
    global _LOCK
    _LOCK = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


def resolve_device(device: int | str | torch.device) -> torch.device:
    """The device for Qlib's `GPU` argument.

    Args:
        device: an int is a GPU's number, and the CPU where PyTorch sees no GPU, as in Qlib; -1 is the CPU. A str
            ("cpu", "cuda:1") or torch.device is taken at its word.

    Raises:
        TypeError, ValueError: neither of these, or a GPU that is not there.
    """
    if isinstance(device, bool) or not isinstance(device, (int, str, torch.device)):
        raise TypeError(f"GPU must be an int, a str or a torch.device, got {device!r}")
    if isinstance(device, int):
        if device < 0 or not torch.cuda.is_available():
            return torch.device("cpu")
        resolved = torch.device("cuda", device)
    else:
        try:
            resolved = torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"GPU must name a device such as 'cpu' or 'cuda:0', got {device!r}") from error
    if resolved.type == "cuda":
        count = torch.cuda.device_count()
        if (resolved.index or 0) >= count:
            raise ValueError(
                f"GPU must be one of the {count} CUDA devices here, got {device!r}; use GPU=-1 for the CPU"
            )
        if resolved.index is None:
            return torch.device("cuda", torch.cuda.current_device())
    return resolved


@contextmanager
def own_random_streams(seed: int | None, device: torch.device) -> Iterator[None]:
    """Seeds torch for the block, from the system's entropy if None; afterwards the global streams are where they were before.

    torch's streams belong to the process, so that of several threads one at a time is in the block; a block within a block, as of a
    fit in a callback, is fine.
    """
    with _LOCK, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(os.urandom(7), "little") if seed is None else seed)
        yield
