"""Linear layers whose rows do not depend on each other."""

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


class LinearTanh(nn.Sequential):
    """A linear layer and a tanh in one pass; takes the place of the `net` in Qlib's `ALSTMModel`, with its parameter names.

    Shapes: x [B, T, in_features] -> [B, T, out_features].
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.add_module("fc_in", nn.Linear(in_features, out_features))
        self.add_module("act", nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear_tanh(x, self.fc_in.weight, self.fc_in.bias)
