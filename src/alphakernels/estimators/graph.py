"""GATsModel and HISTModel: Qlib's pytorch_gats (and its `_ts` twin) and pytorch_hist, which look at all stocks of a day together.

A step is one trading day, or several with `days_per_step`; days are shuffled as in Qlib. The same seed, hyper-parameters and data
give Qlib's batches and losses. Two things differ on purpose: without model_path the base model starts from its own initial
weights (Qlib copies those of another random network of the default sizes), and windows are cut by day (Qlib's `_ts` class cuts them
by counts that belong to another order).
"""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from alphakernels.data import Batch
from alphakernels.estimators._base import FitContext
from alphakernels.estimators._concepts import Concepts
from alphakernels.estimators._network import NetworkEstimator
from alphakernels.estimators._qlib_checkpoint import read_state_dict
from alphakernels.estimators._segments import Rows
from alphakernels.models import GATsNet, HISTNet
from alphakernels.training import CheckpointError, load_tensors


class _DayModel(NetworkEstimator):
    """Days as batches, and a base model that may be pretrained."""

    _by_day = True
    _run_parameters = NetworkEstimator._run_parameters | {"model_path"}

    model_path: str | os.PathLike[str] | None
    base_model: str
    days_per_step: int

    def _pretrained(self, network: nn.Module) -> None:
        """Takes from the file what has a name in the network: the base model, and its last layer, as Qlib does."""
        if self.model_path is None:
            return
        source = f"model_path {os.fspath(self.model_path)}"
        if str(self.model_path).endswith(".safetensors"):
            state = load_tensors(self.model_path)[0]
        else:
            state = read_state_dict(self.model_path)
        own = network.state_dict()
        known = {name: tensor for name, tensor in state.items() if name in own}
        if not any(name.startswith("rnn.") for name in known):
            raise CheckpointError(f"{source}: expected the weights of a {self.base_model}, rnn.*, got {', '.join(list(state)[:3])}")
        for name, tensor in known.items():
            if own[name].shape != tensor.shape:
                raise CheckpointError(
                    f"{source}: expected {name} of shape {tuple(own[name].shape)}, got {tuple(tensor.shape)}; pretrain a "
                    f"{self.base_model} with this model's d_feat, hidden_size and num_layers"
                )
        network.load_state_dict({**own, **known})

    def _days_features(self, features: Any) -> int:
        # An MLP takes a row as it is.
        if self.base_model == "MLP" and self.step_len_ is None and self.d_feat is None:
            return len(features)
        return super()._days_features(features)


class GATsModel(_DayModel):
    """Graph attention over all stocks of a day, on top of a GRU or LSTM (Velickovic et al. 2018, arXiv:1710.10903).

    Args:
        d_feat: features a day; None takes it from the dataset.
        hidden_size, num_layers, dropout: of the base model.
        base_model: "GRU" or "LSTM", or "MLP" for tabular features, d_feat of which make a row.
        model_path: weights of a pretrained base model: Qlib's .pkl or .bin state dict, or a saved GRUModel or LSTMModel
            (.safetensors). None trains from scratch.
        days_per_step: days a step of the optimizer; their losses count alike.
        n_epochs, lr, metric, early_stop, loss, optimizer, GPU, seed, n_jobs, missing, progress: as in `GRUModel`. Losses and "ic" are
            means over days.

    Raises:
        ValueError: an argument outside what is said above.
    """

    _network_class = GATsNet
    _network_parameters = ("hidden_size", "num_layers", "dropout", "base_model")

    def __init__(
        self,
        d_feat: int | None = 6,
        hidden_size: int = 64,
        num_layers: int = 2,
        dropout: float = 0.0,
        n_epochs: int = 200,
        lr: float = 0.001,
        metric: str = "",
        early_stop: int = 20,
        loss: str = "mse",
        base_model: Literal["GRU", "LSTM", "MLP"] = "GRU",
        model_path: str | os.PathLike[str] | None = None,
        optimizer: str = "adam",
        GPU: int | str | torch.device = 0,
        seed: int | None = None,
        n_jobs: int = 10,
        days_per_step: int = 1,
        missing: Literal["error", "fill"] = "error",
        progress: bool | None = None,
    ) -> None:
        self._initialise(locals())

    def _scores(self, module: nn.Module, batch: Batch) -> Tensor:
        return module(batch.x) if len(batch.offsets) == 2 else module(batch.x, batch.offsets)


class HISTModel(_DayModel):
    """Concepts shared by stocks, predefined and hidden, on top of a GRU or LSTM (Xu et al. 2021, arXiv:2110.13716).

    Args:
        stock2concept, stock_index: see `Concepts.read`: a frame, a dict, or files in Qlib's format.
        default_row: the row of stock2concept for stocks which are not in stock_index (Qlib: 733); None gives them no concept.
        d_feat, hidden_size, num_layers, dropout, base_model, model_path, days_per_step, n_epochs, lr, metric, early_stop, loss,
            optimizer, GPU, seed, missing, progress: as in `GATsModel`.

    Raises:
        ValueError: an argument outside what is said above.
    """

    _network_class = HISTNet
    _network_parameters = ("hidden_size", "num_layers", "dropout", "base_model")
    concepts_: Concepts | None = None

    def __init__(
        self,
        d_feat: int | None = 6,
        hidden_size: int = 64,
        num_layers: int = 2,
        dropout: float = 0.0,
        n_epochs: int = 200,
        lr: float = 0.001,
        metric: str = "",
        early_stop: int = 20,
        loss: str = "mse",
        base_model: Literal["GRU", "LSTM", "MLP"] = "GRU",
        model_path: str | os.PathLike[str] | None = None,
        stock2concept: Any = None,
        stock_index: Any = None,
        optimizer: str = "adam",
        GPU: int | str | torch.device = 0,
        seed: int | None = None,
        default_row: int | None = None,
        days_per_step: int = 1,
        missing: Literal["error", "fill"] = "error",
        progress: bool | None = None,
    ) -> None:
        self._initialise(locals())

    def _prepare(self, context: FitContext) -> None:
        self.concepts_ = Concepts.read(self.stock2concept, self.stock_index, self.default_row)

    def load_qlib_checkpoint(self, path: str | os.PathLike[str], n_features: int, step_len: int | None = None) -> NetworkEstimator:
        # Qlib's file holds no concepts: they are those of the arguments.
        self.concepts_ = Concepts.read(self.stock2concept, self.stock_index, self.default_row)
        return super().load_qlib_checkpoint(path, n_features, step_len)

    def _row_extras(self, rows: Rows) -> dict[str, np.ndarray]:
        return {"stock": self.concepts_.positions(rows.index)}

    def _scores(self, module: nn.Module, batch: Batch) -> Tensor:
        self.concepts_ = self.concepts_.to(batch.x.device)
        offsets = None if len(batch.offsets) == 2 else batch.offsets
        return module(batch.x, self.concepts_.matrix, offsets, batch.extras["stock"])

    def _fingerprint(self, context: FitContext, **segments: Rows) -> dict[str, Any] | None:
        fingerprint = super()._fingerprint(context, **segments)
        return None if fingerprint is None else {**fingerprint, "concepts": self.concepts_.digest()}

    def _saved_parameters(self) -> dict[str, Any]:
        # Tables go with the file as they were read.
        return {
            name: value if isinstance(value, (str, os.PathLike)) or not name.startswith("stock") else None
            for name, value in self.get_params().items()
        }

    def _extra(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = super()._extra()
        return {**tensors, "concepts": self.concepts_.matrix}, {**values, "stocks": list(self.concepts_.stocks)}

    def _restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        super()._restore(tensors, values)
        self.concepts_ = Concepts(pd.Index(values["stocks"]), tensors["concepts"])
