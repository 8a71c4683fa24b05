"""Ghost batch norm as a module, with the parameters and state_dict names of Qlib's GBN."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import ops


class GhostBatchNorm(nn.Module):
    """Batch norm over virtual batches; takes the place of Qlib's `GBN`.

    Args:
        inp: number of features F.
        vbs: rows of a virtual batch, at least 1.
        momentum: of the running statistics.

    Shapes: x [B, F] -> [B, F]. The parameters live in `bn`, a torch.nn.BatchNorm1d, so that checkpoints load both ways.

    Raises:
        ValueError: vbs < 1; in training, fewer than two rows in a virtual batch (see `ops.ghost_batch_norm`).
    """

    def __init__(self, inp: int, vbs: int = 1024, momentum: float = 0.01) -> None:
        super().__init__()
        if vbs < 1:
            raise ValueError(f"GhostBatchNorm: vbs (virtual batch size) must be at least 1, got {vbs}")
        self.bn = nn.BatchNorm1d(inp, momentum=momentum)
        self.vbs = vbs

    def norm_arguments(self) -> dict:
        """What the ops need to know of this norm; counts the virtual batches in training, as BatchNorm1d does."""
        bn = self.bn
        return dict(
            weight=bn.weight,
            bias=bn.bias,
            running_mean=bn.running_mean,
            running_var=bn.running_var,
            virtual_batch_size=self.vbs,
            training=bn.training,  # the norm may be frozen by itself
            momentum=bn.momentum,
            eps=bn.eps,
        )

    def count_batches(self, rows: int) -> None:
        """Advances `num_batches_tracked` by the number of virtual batches that `rows` rows make."""
        if self.bn.training and self.bn.num_batches_tracked is not None:
            from ..ops.ghost_batch_norm.reference import chunk_sizes

            self.bn.num_batches_tracked.add_(len(chunk_sizes(rows, self.vbs)))

    def forward(self, x: Tensor, linear_bias: Tensor | None = None) -> Tensor:
        y = ops.ghost_batch_norm(x, **self.norm_arguments(), linear_bias=linear_bias)
        self.count_batches(x.shape[0])
        return y

    def fold_into(self, linear: nn.Linear) -> tuple[Tensor, Tensor]:
        """Weight [F, in] and bias [F] of the one linear layer that `linear` followed by this norm is in evaluation."""
        bn = self.bn
        scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)  # [F]
        shift = bn.bias - bn.running_mean * scale  # [F]
        if linear.bias is not None:
            shift = torch.addcmul(shift, linear.bias, scale)
        return linear.weight * scale[:, None], shift
