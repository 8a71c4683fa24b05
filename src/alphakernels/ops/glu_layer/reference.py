"""TabNet's GLU layer (Arik & Pfister 2019, arXiv:1908.07442, figure 4c), linear layer included, in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from ..glu_block import reference as _block
from ..linear import reference as _linear


def glu_layer(x: Tensor, fc: Tensor, mask: Tensor | None, *norm, residual: bool, scale: float) -> tuple[Tensor, ...]:
    """out [B, H] from x [B, K], and the statistics that `ghost_batch_norm` returns; `norm` as glu_block's reference takes it."""
    u = _linear.linear(x, fc, mask)  # [B, 2H]
    return _block.glu_block(u, x if residual else None, *norm, scale)
