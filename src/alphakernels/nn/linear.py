"""A linear layer whose rows do not depend on each other."""

from __future__ import annotations

from torch import Tensor, nn

from .. import ops


class Linear(nn.Linear):
    """`torch.nn.Linear` by the op `linear`: each row of the output is the same bits in whatever batch it comes. The BLAS takes other
    sums for other sizes of batch.

    Shapes: input [..., in_features] -> [..., out_features].
    """

    def forward(self, input: Tensor) -> Tensor:
        out = ops.linear(input.reshape(-1, self.in_features), self.weight)
        out = out if self.bias is None else out + self.bias
        return out.view(*input.shape[:-1], self.out_features)
