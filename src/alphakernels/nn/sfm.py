"""The state-frequency-memory layer (Zhang, Aggarwal & Qi, KDD 2017), with the parameters of Qlib's SFM_Model: their names, the order
they are made in and their distributions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import init

from .. import ops

VARIANTS = ("qlib", "paper")
_GATES = ("i", "ste", "c", "o", "fre")  # the order of the op's columns


class SFM(nn.Module):
    """A recurrent layer whose memory is split by frequency.

    Args:
        d_feat: number of features D of a step.
        freq_dim: number of frequencies F.
        hidden_size: hidden units H.
        dropout_W, dropout_U: dropout on the features and on the hidden state where they enter the gates, the same at every step of a
            row (Gal & Ghahramani 2016).
        variant: "qlib" reproduces Qlib's arithmetic: the dropouts are without effect, and angles `2 pi t` are rounded to float32.
            In "paper" the dropouts work and the angles are exact.

    Shapes: x [B, T, D] -> the last hidden state [B, H].

    Raises:
        ValueError: unknown variant; a dropout outside [0, 1).
    """

    def __init__(
        self,
        d_feat: int = 6,
        freq_dim: int = 10,
        hidden_size: int = 64,
        dropout_W: float = 0.0,
        dropout_U: float = 0.0,
        variant: str = "qlib",
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if variant not in VARIANTS:
            raise ValueError(f"{name}: variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
        for what, p in (("dropout_W", dropout_W), ("dropout_U", dropout_U)):
            if not 0 <= p < 1:
                raise ValueError(f"{name}: {what} must be in [0, 1), got {p}")
        self.input_dim, self.hidden_dim, self.freq_dim = d_feat, hidden_size, freq_dim
        self.dropout_W, self.dropout_U, self.variant = dropout_W, dropout_U, variant
        for gate, columns, bias in (
            ("i", hidden_size, torch.zeros),
            ("ste", hidden_size, torch.ones),
            ("fre", freq_dim, torch.ones),
            ("c", hidden_size, torch.zeros),
            ("o", hidden_size, torch.zeros),
        ):
            setattr(self, f"W_{gate}", nn.Parameter(init.xavier_uniform_(torch.empty(d_feat, columns))))
            setattr(self, f"U_{gate}", nn.Parameter(init.orthogonal_(torch.empty(hidden_size, columns))))
            setattr(self, f"b_{gate}", nn.Parameter(bias(columns)))
        self.U_a = nn.Parameter(init.orthogonal_(torch.empty(freq_dim, 1)))
        self.b_a = nn.Parameter(torch.zeros(hidden_size))

    def _columns(self, kind: str) -> Tensor:
        """The gates' weights or biases of one kind, side by side."""
        return torch.cat([getattr(self, f"{kind}_{gate}") for gate in _GATES], dim=-1)

    def _waves(self, steps: int, like: Tensor) -> Tensor:
        exact = self.variant == "paper" or like.dtype == torch.float64
        angle_dtype = torch.float64 if exact else torch.float32
        return ops.fourier_waves(steps, self.freq_dim, dtype=like.dtype, device=like.device, angle_dtype=angle_dtype)

    def hidden_state(self, x: Tensor) -> Tensor:
        """The last hidden state [B, H] of x [B, T, D]."""
        mask = None
        if self.training and self.variant == "paper":
            if self.dropout_W > 0:
                x = x * F.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), self.dropout_W)
            if self.dropout_U > 0:
                mask = F.dropout(x.new_ones(x.shape[0], self.hidden_dim), self.dropout_U)
        return ops.sfm(
            x,
            self._columns("W"),
            self._columns("U"),
            self._columns("b"),
            self.U_a[:, 0],
            self.b_a,
            waves=self._waves(x.shape[1], x),
            hidden_mask=mask,
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 3 or x.shape[2] != self.input_dim:
            raise ValueError(f"SFM: x must be of shape [B, T, {self.input_dim}], got {list(x.shape)}")
        return self.hidden_state(x)
