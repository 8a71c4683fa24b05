"""LocalformerModel and TransformerModel: Qlib's pytorch_localformer and pytorch_transformer, and their `_ts` twins.

The same seed, hyper-parameters and data give Qlib's initial weights, batches and, without dropout, losses; with dropout the random
numbers are the kernels' own. Each takes rows [F * T], feature after feature (Alpha360), or windows (`PanelDataset.windows`), and
tells which by the dataset. A row's score does not depend on the rows it is predicted with.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from alphakernels.data import RowBatches
from alphakernels.estimators._network import NetworkEstimator
from alphakernels.models import LocalformerNet, TransformerNet

ATTENTION_ROWS = 64  # samples whose weights are computed at once


class _EncoderModel(NetworkEstimator):
    """What the two have in common: their arguments, and the attention of their layers."""

    _network_parameters = ("d_model", "nhead", "num_layers", "dropout", "dim_feedforward", "memory")
    _run_parameters = NetworkEstimator._run_parameters | {"memory"}

    def __init__(
        self,
        d_feat: int | None = 20,
        d_model: int = 64,
        batch_size: int = 2048,
        nhead: int = 2,
        num_layers: int = 2,
        dropout: float = 0,
        n_epochs: int = 100,
        lr: float = 0.0001,
        metric: str = "",
        early_stop: int = 5,
        loss: str = "mse",
        optimizer: str = "adam",
        reg: float = 1e-3,
        n_jobs: int = 10,
        GPU: int | str | torch.device = 0,
        seed: int | None = None,
        dim_feedforward: int = 2048,
        memory: Literal["auto", "low"] = "auto",
        missing: Literal["error", "fill"] = "error",
        drop_tail: bool = False,
        progress: bool | None = None,
    ) -> None:
        self._initialise(locals())

    def _initialise(self, parameters: dict[str, Any]) -> None:
        super()._initialise(parameters)
        if self.d_model % self.nhead:
            raise ValueError(f"{type(self).__name__}: d_model must be a multiple of nhead = {self.nhead}, got {self.d_model}")

    def attention(self, dataset: Any, segment: str = "test", samples: Any = None, layer: int = -1) -> pd.DataFrame:
        """How much each day looks at each other day in the chosen samples: the weights of every head of one layer.

        They are computed for this call alone and take 4 * heads * T * T bytes a sample.

        Args:
            dataset, segment: as in `predict`.
            samples: which rows of the segment: a (datetime, instrument) index or a list of such pairs, their positions, or a mask
                [N]. None takes all.
            layer: of the encoder, from 0; -1 is the last.

        Returns:
            float32 DataFrame, index (datetime, instrument, head, days back of the day that looks) x days back of the day looked
            at (T - 1, ..., 0). A row sums to 1.

        Raises:
            ValueError: as `predict`; samples which are not in the segment; a layer that the network does not have.
        """
        module = self._module()
        rows = self._rows_to_predict(dataset, segment)
        if not -self.num_layers <= layer < self.num_layers:
            raise ValueError(f"{type(self).__name__}: layer must be from 0 to {self.num_layers - 1}, or -1 for the last, got {layer}")
        chosen = _positions(type(self).__name__, rows.index, samples)
        batches = RowBatches(rows.x[chosen], batch_size=ATTENTION_ROWS, device=next(module.parameters()).device)
        with torch.inference_mode():
            weights = torch.cat([module.attention(batch.x, layer).float().cpu() for batch in batches]).numpy()  # [N, heads, T, T]
        _, heads, _, steps = weights.shape
        back = pd.RangeIndex(steps - 1, -1, -1, name="days back")
        index = rows.index[chosen].repeat(heads * steps)
        levels = [index.get_level_values(level) for level in range(index.nlevels)]
        levels += [np.tile(np.repeat(np.arange(heads), steps), len(chosen)), np.tile(back, len(chosen) * heads)]
        names = [*index.names, "head", "days back"]
        return pd.DataFrame(weights.reshape(-1, steps), index=pd.MultiIndex.from_arrays(levels, names=names), columns=back)


def _positions(owner: str, index: pd.MultiIndex, samples: Any) -> np.ndarray:
    """int64 [n], the places in `index` that `samples` names, at least one.

    Raises:
        ValueError: something that is not there.
    """
    if samples is None:
        return np.arange(len(index))
    if not isinstance(samples, pd.Index):
        samples = samples if isinstance(samples, np.ndarray) else list(samples)
        if len(samples) and isinstance(samples[0], tuple):
            samples = pd.MultiIndex.from_tuples(samples, names=index.names)
    if len(samples) == 0:
        raise ValueError(f"{owner}: samples must name at least one row, got none")
    if isinstance(samples, pd.MultiIndex):
        days = pd.to_datetime(samples.get_level_values(0))
        found = index.get_indexer(pd.MultiIndex.from_arrays([days, samples.get_level_values(1)]))
        if (found < 0).any():
            raise ValueError(f"{owner}: samples must be rows of the segment, got {samples[int(np.argmin(found))]}")
        return found
    array = np.asarray(samples)
    if array.dtype == bool and array.shape == (len(index),) and array.any():
        return np.flatnonzero(array)
    if array.dtype.kind not in "iu" or array.ndim != 1 or array.min() < 0 or array.max() >= len(index):
        raise ValueError(
            f"{owner}: samples must be (datetime, instrument) pairs, positions from 0 to {len(index) - 1}, or a mask of length "
            f"{len(index)} with a row in it, got {array.dtype} {list(array.shape)}"
        )
    return array.astype(np.int64)


class LocalformerModel(_EncoderModel):
    """LocalFormer: encoder layers with a convolution over time before each, and a GRU on top.

    Args:
        d_feat: features a day; None takes it from the dataset.
        d_model: width of the encoder, a multiple of `nhead`.
        batch_size: rows a step (8192 in Qlib's time-series variant). The rows left over at the end of a shuffled epoch are not
            trained on, as in Qlib.
        nhead: heads of the attention. num_layers: of the encoder and of the GRU. dropout: in the layers, in training.
        n_epochs: the most epochs. lr: learning rate.
        metric: by which the best epoch is chosen: "", "loss" or "mse" (the loss), or "ic" (the mean daily correlation).
        early_stop: epochs without improvement until it stops.
        loss: "mse". optimizer: "adam" or "gd". reg: weight decay of the optimizer.
        n_jobs: taken for Qlib's sake; batches need no worker processes.
        GPU: see `resolve_device`: int, str, torch.device, or -1 for the CPU.
        seed: of everything random; None takes one from the system. Global random states are not touched.
        dim_feedforward: hidden width of the layers' feed-forward part, 2048 in Qlib.
        memory: "auto", or "low" to keep nothing but the layers' inputs for the backward pass: slower, and small.
        missing: NaN in features: "error" names the columns, "fill" takes 0. Rows whose label is NaN are not trained on.
        drop_tail: evaluate full batches only, as Qlib does; by default every row is evaluated.
        progress: a progress bar: True, False, or None for "where standard error is a terminal".

    Raises:
        ValueError: an argument outside what is said above.
    """

    _network_class = LocalformerNet


class TransformerModel(_EncoderModel):
    """The Transformer's encoder (Vaswani et al. 2017, arXiv:1706.03762) and a linear layer on its last day.

    Arguments as `LocalformerModel`'s; there is no GRU.
    """

    _network_class = TransformerNet
