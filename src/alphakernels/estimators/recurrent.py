"""GRUModel, LSTMModel, ALSTMModel: Qlib's pytorch_gru, pytorch_lstm and pytorch_alstm, and their `_ts` twins.

The same seed, hyper-parameters and data give Qlib's initial weights, batches and losses. Each takes rows [F * T], feature after
feature (Alpha360), or windows (`PanelDataset.windows`), and tells which by the dataset.
"""

from __future__ import annotations

from typing import Any, Literal

import pandas as pd
import torch

from alphakernels.data import RowBatches
from alphakernels.estimators._network import NetworkEstimator
from alphakernels.models import ALSTMNet, GRUNet, LSTMNet


class GRUModel(NetworkEstimator):
    """A GRU and a linear layer on its last state.

    Args:
        d_feat: features a day; None takes it from the dataset.
        hidden_size, num_layers: of the recurrent layers. dropout: between them.
        n_epochs: the most epochs. lr: learning rate.
        metric: by which the best epoch is chosen: "", "loss" or "mse" (the loss), or "ic" (the mean daily correlation).
        batch_size: rows a step. The rows left over at the end of a shuffled epoch are not trained on, as in Qlib.
        early_stop: epochs without improvement until it stops.
        loss: "mse". optimizer: "adam" or "gd".
        GPU: see `resolve_device`: int, str, torch.device, or -1 for the CPU.
        seed: of everything random; None takes one from the system. Global random states are not touched.
        n_jobs: taken for Qlib's sake; batches need no worker processes.
        missing: NaN in features: "error" names the columns, "fill" takes 0. Rows whose label is NaN are not trained on.
        drop_tail: evaluate full batches only, as Qlib does; by default every row is evaluated.
        progress: a progress bar: True, False, or None for "where standard error is a terminal".

    Raises:
        ValueError: an argument outside what is said above.
    """

    _network_class = GRUNet
    _network_parameters = ("hidden_size", "num_layers", "dropout")
    _only_labelled = True  # Qlib's GRU drops rows without label, its LSTM and ALSTM do not

    def __init__(
        self,
        d_feat: int | None = 6,
        hidden_size: int = 64,
        num_layers: int = 2,
        dropout: float = 0.0,
        n_epochs: int = 200,
        lr: float = 0.001,
        metric: str = "",
        batch_size: int = 2000,
        early_stop: int = 20,
        loss: str = "mse",
        optimizer: str = "adam",
        GPU: int | str | torch.device = 0,
        seed: int | None = None,
        n_jobs: int = 10,
        missing: Literal["error", "fill"] = "error",
        drop_tail: bool = False,
        progress: bool | None = None,
    ) -> None:
        self._initialise(locals())


class LSTMModel(NetworkEstimator):
    """An LSTM and a linear layer on its last state. Arguments as `GRUModel`'s."""

    _network_class = LSTMNet
    _network_parameters = ("hidden_size", "num_layers", "dropout")

    def __init__(
        self,
        d_feat: int | None = 6,
        hidden_size: int = 64,
        num_layers: int = 2,
        dropout: float = 0.0,
        n_epochs: int = 200,
        lr: float = 0.001,
        metric: str = "",
        batch_size: int = 2000,
        early_stop: int = 20,
        loss: str = "mse",
        optimizer: str = "adam",
        GPU: int | str | torch.device = 0,
        seed: int | None = None,
        n_jobs: int = 10,
        missing: Literal["error", "fill"] = "error",
        drop_tail: bool = False,
        progress: bool | None = None,
    ) -> None:
        self._initialise(locals())


class ALSTMModel(NetworkEstimator):
    """A recurrent network with attention over its days (Qin et al. 2017, arXiv:1704.02971).

    Arguments as `GRUModel`'s, and rnn_type: "GRU" (what Qlib's class always uses) or "LSTM".
    """

    _network_class = ALSTMNet
    _network_parameters = ("hidden_size", "num_layers", "dropout", "rnn_type")

    def __init__(
        self,
        d_feat: int | None = 6,
        hidden_size: int = 64,
        num_layers: int = 2,
        dropout: float = 0.0,
        n_epochs: int = 200,
        lr: float = 0.001,
        metric: str = "",
        batch_size: int = 2000,
        early_stop: int = 20,
        loss: str = "mse",
        optimizer: str = "adam",
        GPU: int | str | torch.device = 0,
        seed: int | None = None,
        n_jobs: int = 10,
        rnn_type: str = "GRU",
        missing: Literal["error", "fill"] = "error",
        drop_tail: bool = False,
        progress: bool | None = None,
    ) -> None:
        self._initialise(locals())

    def attention(self, dataset: Any, segment: str = "test") -> pd.DataFrame:
        """How much each day of its history counted in each row: the attention's weights.

        Returns:
            float32 DataFrame, index of the segment x days back (T - 1, ..., 0). A row sums to 1.

        Raises:
            ValueError: as `predict`.
        """
        module = self._module()
        rows = self._rows_to_predict(dataset, segment)
        batches = RowBatches(rows.x, batch_size=self.batch_size, device=next(module.parameters()).device)
        with torch.inference_mode():
            weights = torch.cat([module(batch.x, return_weights=True)[1].cpu() for batch in batches])  # [N, T]
        days = pd.RangeIndex(weights.shape[1] - 1, -1, -1, name="days back")
        return pd.DataFrame(weights.numpy(), index=rows.index, columns=days)
