"""Row batches: a segment cut into [B, D] pieces by one vectorised gather a batch, without a Python object a row.

The shuffle draws from NumPy's legacy stream exactly as Qlib's training loops do (`indices = np.arange(n)`, then
`np.random.shuffle(indices)`), so that the same seed visits the same rows in the same order.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

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
    """

    x: Tensor
    y: Tensor | None
    rows: np.ndarray
    extras: dict[str, Tensor] = field(default_factory=dict)


class RowBatches:
    """A re-iterable stream of `Batch`; `len` is the number of batches of one pass, `n_rows` the rows of the data.

    Args:
        x: features [N, ...], floating point, NumPy array or tensor. Not copied where it already lies where wanted,
            and never written to.
        y: labels [N, ...], or None.
        batch_size: rows a batch.
        shuffle: the RandomState each pass draws its order from, or None for the rows as they stand.
        drop_last: leave out the last batch of a pass when it is shorter than `batch_size`, as Qlib's training does.
            Data of less than one full batch is never left out.
        device: where the batches are handed out; None means where the data lies.
        data_device: where all the data rests: a device, "cpu", or "auto": on `device` when it fits in a quarter of
            the device's free memory, else on the CPU, from where each batch travels through pinned memory.
        extras: more arrays [N, ...] by name, of any dtype, cut by the same rows into `Batch.extras`.

    Raises:
        ValueError: no rows, arrays of different lengths, or a batch size < 1.
        TypeError: features or labels that are not floating point.
    """

    def __init__(
        self,
        x: np.ndarray | Tensor,
        y: np.ndarray | Tensor | None = None,
        *,
        batch_size: int,
        shuffle: np.random.RandomState | None = None,
        drop_last: bool = False,
        device: str | torch.device | None = None,
        data_device: str | torch.device = "auto",
        extras: Mapping[str, np.ndarray | Tensor] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"RowBatches: batch_size must be at least 1, got {batch_size}")
        tensors = {"x": _as_tensor(x)}
        if y is not None:
            tensors["y"] = _as_tensor(y)
        for name, tensor in tensors.items():
            if not tensor.is_floating_point():
                raise TypeError(f"RowBatches: {name} must be floating point, got {tensor.dtype}")
        tensors |= {f"extras[{name!r}]": _as_tensor(value) for name, value in (extras or {}).items()}
        for name, tensor in tensors.items():
            rows = tensor.shape[0] if tensor.dim() else 0
            if tensor.dim() == 0 or rows != tensors["x"].shape[0]:
                raise ValueError(
                    f"RowBatches: {name} must have one entry a row of x, whose shape is {tuple(tensors['x'].shape)}, "
                    f"got shape {tuple(tensor.shape)}"
                )
        self.n_rows = tensors["x"].shape[0]
        if self.n_rows == 0:
            raise ValueError("RowBatches: x must have at least one row, got 0")

        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.device = tensors["x"].device if device is None else _indexed(torch.device(device))
        self.data_device = _data_device(data_device, self.device, tensors.values())
        resting = [tensor.to(self.data_device) for tensor in tensors.values()]
        self._x = resting.pop(0)
        self._y = resting.pop(0) if y is not None else None
        self._extras = dict(zip(extras or {}, resting, strict=True))

    def __len__(self) -> int:
        full, tail = divmod(self.n_rows, self.batch_size)
        return full if tail == 0 or (self.drop_last and full) else full + 1

    def __iter__(self) -> Iterator[Batch]:
        order = np.arange(self.n_rows)
        if self.shuffle is None:
            positions = None
        else:
            self.shuffle.shuffle(order)
            positions = torch.from_numpy(order).to(self.data_device)
        for number in range(len(self)):
            piece = slice(number * self.batch_size, min((number + 1) * self.batch_size, self.n_rows))
            yield Batch(
                x=self._cut(self._x, piece, positions),
                y=None if self._y is None else self._cut(self._y, piece, positions),
                rows=order[piece],
                extras={name: self._cut(tensor, piece, positions) for name, tensor in self._extras.items()},
            )

    def _cut(self, data: Tensor, piece: slice, positions: Tensor | None) -> Tensor:
        """The rows of one batch, on the batches' device."""
        if self.data_device == self.device:
            return data[piece] if positions is None else data.index_select(0, positions[piece])
        # The pinned-memory allocator hands a buffer out again only after the copy that reads it has finished, so
        # the copy may overlap with the step before it.
        staged = torch.empty(
            (piece.stop - piece.start, *data.shape[1:]),
            dtype=data.dtype,
            pin_memory=self.device.type == "cuda",
        )
        if positions is None:
            staged.copy_(data[piece])
        else:
            torch.index_select(data, 0, positions[piece], out=staged)
        return staged.to(self.device, non_blocking=True)


def _as_tensor(values: np.ndarray | Tensor) -> Tensor:
    """A tensor of the same memory. PyTorch warns of read-only arrays, but batches never write to the data."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ", category=UserWarning)
        return torch.as_tensor(values)


def _data_device(asked: str | torch.device, device: torch.device, tensors: Iterable[Tensor]) -> torch.device:
    """Where the data rests: see `RowBatches`."""
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
