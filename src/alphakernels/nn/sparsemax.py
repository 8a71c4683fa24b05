"""Sparsemax as a module."""

from __future__ import annotations

from torch import Tensor, nn

from .. import ops


class Sparsemax(nn.Module):
    """Sparsemax along `dim`: like torch.nn.Softmax, with exact zeros. See `ops.sparsemax`."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return ops.sparsemax(x, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
