"""The state-frequency-memory network (Zhang, Aggarwal & Qi, KDD 2017), with the constructor, the order of parameter creation and the
state_dict names of Qlib's `SFM_Model`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import init

from ..nn import SFM


class SFMNet(SFM):
    """An SFM layer over the windows of features, and a linear head on its last hidden state. It keeps nothing between calls.

    Args:
        d_feat: number of features F of a step.
        output_dim: columns between the two linear maps of the head.
        freq_dim, hidden_size, dropout_W, dropout_U, variant: as in `nn.SFM`.
        device: accepted as in the original, without effect: the network runs where its parameters and inputs are.

    Shapes: x [N, F * T], all steps of a feature side by side as in Qlib, or windows [N, T, F] -> [N] (of one row too, where Qlib's
    becomes 0-d).

    Raises:
        ValueError: as `nn.SFM`; x of another shape.
    """

    def __init__(
        self,
        d_feat: int = 6,
        output_dim: int = 1,
        freq_dim: int = 10,
        hidden_size: int = 64,
        dropout_W: float = 0.0,
        dropout_U: float = 0.0,
        device: torch.device | str | int = "cpu",
        variant: str = "qlib",
    ) -> None:
        super().__init__(d_feat, freq_dim, hidden_size, dropout_W, dropout_U, variant)
        self.output_dim = output_dim
        self.W_p = nn.Parameter(init.xavier_uniform_(torch.empty(hidden_size, output_dim)))
        self.b_p = nn.Parameter(torch.zeros(output_dim))
        self.fc_out = nn.Linear(output_dim, 1)

    def _windows(self, x: Tensor) -> Tensor:
        features = self.input_dim
        rows = x.dim() == 2 and x.shape[1] > 0 and x.shape[1] % features == 0
        if not rows and not (x.dim() == 3 and x.shape[2] == features):
            raise ValueError(f"SFMNet: x must be of shape [N, {features} * T] or [N, T, {features}], got {list(x.shape)}")
        return x.unflatten(1, (features, x.shape[1] // features)).transpose(1, 2) if rows else x

    def forward(self, x: Tensor) -> Tensor:
        p = self.hidden_state(self._windows(x)) @ self.W_p + self.b_p  # [N, output_dim]
        return self.fc_out(p).squeeze(-1)
