"""The multi-layer perceptron, with the constructor, the order of parameter creation and the state_dict names of Qlib's `Net`.

Its layers are torch's own: beside the matrix products there is little left that a kernel of ours would do faster.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

ACTIVATIONS = {"LeakyReLU": lambda: nn.LeakyReLU(negative_slope=0.1), "SiLU": nn.SiLU}
_DROPOUT = 0.05


class MLPNet(nn.Module):
    """Linear layer, batch norm and activation, for every hidden layer; dropout of 0.05 before the first and before the last layer.

    Args:
        input_dim: columns of the input.
        output_dim: columns of the output.
        layers: hidden units of each hidden layer; none makes a linear model.
        act: "LeakyReLU" (slope 0.1) or "SiLU".

    Shapes: x [N, input_dim] -> [N, output_dim].

    Raises:
        ValueError: unknown activation; x of another shape; in training a batch of one row, which has no variance.
    """

    def __init__(self, input_dim: int, output_dim: int = 1, layers: Sequence[int] = (256,), act: str = "LeakyReLU") -> None:
        super().__init__()
        if act not in ACTIVATIONS:
            raise ValueError(f"MLPNet: act must be one of {', '.join(ACTIVATIONS)}, got {act!r}")
        self.input_dim = input_dim
        widths = [input_dim, *layers]
        modules: list[nn.Module] = [nn.Dropout(_DROPOUT)]
        for columns, units in zip(widths[:-1], widths[1:], strict=True):
            modules.append(nn.Sequential(nn.Linear(columns, units), nn.BatchNorm1d(units), ACTIVATIONS[act]()))
        modules += [nn.Dropout(_DROPOUT), nn.Linear(widths[-1], output_dim)]
        self.dnn_layers = nn.ModuleList(modules)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, a=0.1, mode="fan_in", nonlinearity="leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2 or x.shape[1] != self.input_dim:
            raise ValueError(f"MLPNet: x must be of shape [N, {self.input_dim}], got {list(x.shape)}")
        for layer in self.dnn_layers:
            x = layer(x)
        return x
