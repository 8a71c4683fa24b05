"""What a case of an op is: how its inputs are drawn, the public call, and the reference it is held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..tolerances import Tolerance

Inputs = dict[str, Tensor | None]
Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One call of one op.

    `call` is the public function, `reference` the op's plain PyTorch; both take the inputs by name and return the
    outputs by name. What the public function updates in place (running statistics) is copied first and returned as an
    output, so that inputs stay as they are.
    """

    op: str
    id: str
    make: Callable[[torch.Generator], Inputs]  # float32 tensors on the CPU
    call: Callable[[Inputs], Outputs]
    reference: Callable[[Inputs], Outputs]
    eager: Callable[[Inputs], Outputs]  # the torch modules that people run today: the peer in accuracy and in time
    needs_grad: tuple[str, ...]
    purpose: str = "contract"  # or "gradcheck": a few elements, away from kinks; or "benchmark"
    tolerance: Tolerance | None = None  # for float32, where the case itself magnifies rounding
    half_tolerance: Tolerance | None = None  # for bfloat16 and float16, where the op itself magnifies rounding
    # Under autocast the op does what torch's own does (a matrix product in half precision) in place of computing in float32.
    follows_autocast: bool = False
    # Elements that forward and backward must move, each tensor once.
    traffic: Callable[[Inputs], tuple[int, int]] | None = None

    def __str__(self) -> str:
        return f"{self.op}-{self.id}"

    def inputs(self, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Inputs:
        """Fresh inputs. They are drawn in float32: the same numbers for float32 and float64."""
        drawn = self.make(torch.Generator().manual_seed(seed))
        return {name: t.to(device=device, dtype=dtype) if t is not None else None for name, t in drawn.items()}

    def bytes_moved(self, dtype: torch.dtype = torch.float32) -> tuple[int, int]:
        """The least bytes that the forward and the backward pass read and write."""
        if self.traffic is None:
            raise ValueError(f"{self}: only benchmark cases count their bytes, this one is for {self.purpose}")
        forward, backward = self.traffic(self.make(torch.Generator().manual_seed(0)))
        return forward * dtype.itemsize, backward * dtype.itemsize


@dataclass(frozen=True)
class BadInput:
    """A call that must raise `error` with a message that matches `message`."""

    op: str
    id: str
    call: Callable[[], object]
    error: type[Exception]
    message: str

    def __str__(self) -> str:
        return f"{self.op}-{self.id}"
