"""Several days in one call: `offsets` [days + 1], int64; day d is the rows [offsets[d], offsets[d + 1]), as in a ragged batch."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks


def check_offsets(op: str, offsets: Tensor | None, rows: int, what: str = "offsets") -> None:
    """int64 [days + 1], rising from 0 to `rows`. The values are read on the CPU alone: on a GPU reading them would wait for it.

    Raises:
        TypeError, ValueError: by message.
    """
    if offsets is None:
        return
    if not isinstance(offsets, Tensor):
        raise TypeError(f"{op}: {what} must be a torch.Tensor, got {type(offsets).__name__}")
    _checks.require(offsets.dtype == torch.int64, op, what, "of dtype torch.int64", offsets.dtype, TypeError)
    _checks.require(offsets.dim() == 1 and offsets.numel() > 0, op, what, "of shape [days + 1]", list(offsets.shape))
    if offsets.device.type != "cpu" or torch.compiler.is_compiling():
        return
    values = offsets.tolist()
    rising = values[0] == 0 and values[-1] == rows and all(a <= b for a, b in zip(values, values[1:], strict=False))
    _checks.require(rising, op, what, f"rising from 0 to {rows}", values if len(values) <= 8 else f"{values[:4]} ... {values[-2:]}")


def on_device(offsets: Tensor | None, device: torch.device) -> Tensor | None:
    """`offsets` where the kernels read them. From the host they travel without waiting for the GPU, so that a loader, which knows them
    anyway, best hands them out on the CPU."""
    if offsets is None or offsets.device == device:
        return offsets
    if device.type == "cuda" and offsets.device.type == "cpu":
        offsets = offsets.pin_memory()
    return offsets.to(device, non_blocking=True)


def day_slices(offsets: Tensor | None, rows: int) -> list[slice]:
    """The rows of each day. Reads the values, which waits for the device where they lie on a GPU: give it offsets on the CPU."""
    if offsets is None:
        return [slice(0, rows)]
    edges = offsets.tolist()
    return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]


def day_of_rows(offsets: Tensor, rows: Tensor) -> Tensor:
    """The day of each row number."""
    return torch.searchsorted(offsets.contiguous(), rows.contiguous(), right=True) - 1
