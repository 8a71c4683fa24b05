"""SFMModel: the state-frequency memory (Zhang, Aggarwal & Qi, KDD 2017), Qlib's pytorch_sfm."""

from __future__ import annotations

from typing import Literal

import torch

from alphakernels.estimators._network import NetworkEstimator
from alphakernels.models import SFMNet


class SFMModel(NetworkEstimator):
    """A recurrent network whose memory is kept by frequency.

    Args:
        d_feat: features a day; None takes it from the dataset.
        hidden_size: of the state. output_dim: of the layer before the last. freq_dim: number of frequencies.
        dropout_W, dropout_U: of the input and of the state; without effect in variant "qlib", as in Qlib.
        eval_steps: taken for Qlib's sake, without effect there and here.
        n_epochs, lr, metric, batch_size, early_stop, loss, optimizer, GPU, seed, missing, drop_tail, progress: as in
            `GRUModel`; the default optimizer is "gd".
        variant: "qlib", or "paper", in which the dropouts work.

    Raises:
        ValueError: an argument outside what is said above.
    """

    _network_class = SFMNet
    _network_parameters = ("output_dim", "freq_dim", "hidden_size", "dropout_W", "dropout_U", "variant")

    def __init__(
        self,
        d_feat: int | None = 6,
        hidden_size: int = 64,
        output_dim: int = 1,
        freq_dim: int = 10,
        dropout_W: float = 0.0,
        dropout_U: float = 0.0,
        n_epochs: int = 200,
        lr: float = 0.001,
        metric: str = "",
        batch_size: int = 2000,
        early_stop: int = 20,
        eval_steps: int = 5,
        loss: str = "mse",
        optimizer: str = "gd",
        GPU: int | str | torch.device = 0,
        seed: int | None = None,
        variant: Literal["qlib", "paper"] = "qlib",
        missing: Literal["error", "fill"] = "error",
        drop_tail: bool = False,
        progress: bool | None = None,
    ) -> None:
        self._initialise(locals())
