"""What all batches share: where a segment's data rests, and how some of its rows become a `Batch`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from alphakernels.data.windows import Windows

# Batches of data that lie on the device need no copy each; a quarter leaves room for the model and its activations.
DEVICE_SHARE = 0.25


@dataclass(frozen=True)
class Batch:
    """Rows of a segment.

    Attributes:
        x: features [B, ...].
        y: labels [B, ...], NaN where not observed, or None.
        rows: int64 [B], the rows' positions in the segment.
        extras: what else a model needs of these rows, by name, each [B, ...].
        weight: [B], how much each row counts in the training's loss, or None for all alike.
        offsets: of a batch of days, int64 [days + 1] on the CPU: day k has the batch's rows offsets[k] to offsets[k + 1].
    """

    x: Tensor
    y: Tensor | None
    rows: np.ndarray
    extras: dict[str, Tensor] = field(default_factory=dict)
    weight: Tensor | None = None
    offsets: Tensor | None = None


class Gather:
    """Base of the batches: holds the data, cuts rows out of it. `n_rows` is the number of rows.

    Args:
        x: features [N, ...], floating point, array or tensor, or `Windows`. Not copied where it already lies where
            wanted, and never written to.
        y: labels [N, ...], or None.
        device: where the batches are handed out; None means where the data lies.
        data_device: where all the data rests: a device, "cpu", or "auto": on `device` when it fits in a quarter of
            the device's free memory, else on the CPU, from where each batch travels through pinned memory.
        extras: more arrays [N, ...] by name, of any dtype, cut by the same rows into `Batch.extras`.
        weight: [N], see `Batch.weight`.

    Raises:
        ValueError: no rows, or arrays of different lengths.
        TypeError: features, labels or weights that are not floating point.
    """

    def __init__(
        self,
        x: np.ndarray | Tensor | Windows,
        y: np.ndarray | Tensor | None = None,
        *,
        device: str | torch.device | None = None,
        data_device: str | torch.device = "auto",
        extras: Mapping[str, np.ndarray | Tensor] | None = None,
        weight: np.ndarray | Tensor | None = None,
    ) -> None:
        owner = type(self).__name__
        self._windows = x if isinstance(x, Windows) else None
        source = _as_tensor(x.source if isinstance(x, Windows) else x)
        self.n_rows = len(x) if isinstance(x, Windows) or source.dim() else 0
        by_row = {name: _as_tensor(values) for name, values in (("y", y), ("weight", weight)) if values is not None}
        for name, tensor in {"x": source, **by_row}.items():
            if not tensor.is_floating_point():
                raise TypeError(f"{owner}: {name} must be floating point, got {tensor.dtype}")
        by_row |= {f"extras[{name!r}]": _as_tensor(value) for name, value in (extras or {}).items()}
        for name, tensor in by_row.items():
            if tensor.dim() == 0 or tensor.shape[0] != self.n_rows:
                raise ValueError(
                    f"{owner}: {name} must have one entry a row of x, whose shape is {tuple(x.shape)}, "
                    f"got shape {tuple(tensor.shape)}"
                )
        if self.n_rows == 0:
            raise ValueError(f"{owner}: x must have at least one row, got 0")

        self.device = source.device if device is None else _indexed(torch.device(device))
        self.data_device = _data_device(data_device, self.device, [source, *by_row.values()])
        self._x = source.to(self.data_device)
        self._by_row = {name: tensor.to(self.data_device) for name, tensor in by_row.items()}
        self._extra_names = {name: f"extras[{name!r}]" for name in extras or {}}

    def _at_rest(self, rows: np.ndarray) -> Tensor:
        """Positions where the data rests, to cut by."""
        return sent(rows, self.data_device)

    def _batch(
        self, rows: np.ndarray, where: slice | Tensor, *, days: np.ndarray | None = None, offsets: Tensor | None = None
    ) -> Batch:
        """The batch of some rows.

        Args:
            rows: their positions in the segment, int64 [B].
            where: the same as a slice, or as `_at_rest` gives it.
            days: the windows' positions [B, T] in the source, where they are known already.
        """
        if self._windows is None:
            x = self._cut(self._x, where)
        else:
            days = self._windows.positions(rows) if days is None else days
            x = self._cut(self._x, self._at_rest(days.reshape(-1))).view(*days.shape, self._x.shape[1])
        by_row = {name: self._cut(tensor, where) for name, tensor in self._by_row.items()}
        extras = {name: by_row[key] for name, key in self._extra_names.items()}
        return Batch(x, by_row.get("y"), rows, extras, by_row.get("weight"), offsets)

    def _cut(self, data: Tensor, where: slice | Tensor) -> Tensor:
        """Some rows of `data`, on the batches' device."""
        whole = isinstance(where, slice)
        if self.data_device == self.device:
            return data[where] if whole else data.index_select(0, where)
        # The pinned-memory allocator hands a buffer out again only after the copy that reads it has finished, so
        # the copy may overlap with the step before it.
        count = where.stop - where.start if whole else len(where)
        staged = torch.empty((count, *data.shape[1:]), dtype=data.dtype, pin_memory=self.device.type == "cuda")
        if whole:
            staged.copy_(data[where])
        else:
            torch.index_select(data, 0, where, out=staged)
        return staged.to(self.device, non_blocking=True)


def sent(values: np.ndarray, device: torch.device) -> Tensor:
    """A tensor of the values on the device; on a GPU through pinned memory, because a copy from other memory waits for all work there."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _as_tensor(values: np.ndarray | Tensor) -> Tensor:
    """A tensor of the same memory. PyTorch warns of read-only arrays, but batches never write to the data."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ", category=UserWarning)
        return torch.as_tensor(values)


def _data_device(asked: str | torch.device, device: torch.device, tensors: Iterable[Tensor]) -> torch.device:
    """Where the data rests: see `Gather`."""
    if asked != "auto":
        return _indexed(torch.device(asked))
    if device.type != "cuda":
        return device
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.device != device)
    free, _ = torch.cuda.mem_get_info(device)
    return device if size <= DEVICE_SHARE * free else torch.device("cpu")


def _indexed(device: torch.device) -> torch.device:
    """"cuda" is the current GPU by its number, so that equal places compare equal."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
