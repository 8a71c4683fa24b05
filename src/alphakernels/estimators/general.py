"""GeneralPTNN: any network as a regressor of returns, with the training of Qlib's qlib.contrib.model.pytorch_general_nn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from alphakernels.data import RowBatches, WindowBatches, Windows, loader_order
from alphakernels.estimators._any_network import AnyNetworkEstimator, logger, my_share
from alphakernels.estimators._base import FitContext
from alphakernels.estimators._segments import Rows
from alphakernels.training import Trainer, binary, mse

# Of Qlib's training.
_CLIP_VALUE = 3.0
_PLATEAU = {"mode": "min", "factor": 0.5, "patience": 5, "min_lr": 1e-6, "threshold": 1e-5}


class GeneralPTNN(AnyNetworkEstimator):
    """Any nn.Module, on rows or on time-series windows, trained as Qlib's adaptor of this name trains it.

    The learning rate is halved after 5 epochs without improvement, the gradient's entries are cut to [-3, 3].

    The two variants:
        "qlib" (default) reproduces Qlib's loss. A network that gives [B] is compared with labels of shape [B, 1], so that
            every prediction is compared with every label of its batch, and all it can learn is their mean; one that gives
            [B, 1] learns as it should, but weights of rows reach the loss only by their mean.
        "paper" compares each prediction with its own label, and weighs rows one by one.

    Args:
        n_epochs: the most epochs. lr: learning rate. weight_decay: of the optimizer.
        metric: "" or "loss". loss: "mse" or "binary" (logits against labels 0 and 1).
        batch_size: rows a step. The rows left over at the end of a shuffled epoch are not trained on.
        early_stop: epochs without improvement until it stops. optimizer: "adam" or "gd".
        n_jobs: there for Qlib's sake: batches are gathered, not loaded.
        GPU: int, str, torch.device, or -1 for the CPU. seed: of everything random; None takes another each time.
        pt_model_uri: the network, a class or its import path; Qlib's networks are answered with ours.
        pt_model_kwargs: its keyword arguments; None are Qlib's for the default network, none for another.
        variant: "qlib" or "paper".
        missing: NaN in features: "error" names the columns; "fill" takes the column's mean in training, zero elsewhere.
        drop_tail: evaluate full batches only, as Qlib does; by default every row is evaluated.
        data_parall: train in the processes of torch.distributed (DistributedDataParallel), each on its share of a batch.
        progress: a progress bar: True, False, or None for "where standard error is a terminal".

    Raises:
        ValueError: an argument outside what is said above, or a network that cannot be found.
        TypeError: wrong arguments of the network; the nearest right one is named.
    """

    _default = ("qlib.contrib.model.pytorch_gru_ts.GRUModel", {"d_feat": 6, "hidden_size": 64, "num_layers": 2, "dropout": 0.0})

    def __init__(
        self,
        n_epochs: int = 200,
        lr: float = 0.001,
        metric: str = "",
        batch_size: int = 2000,
        early_stop: int = 20,
        loss: str = "mse",
        weight_decay: float = 0.0,
        optimizer: str = "adam",
        n_jobs: int = 10,
        GPU: int | str | torch.device = 0,
        seed: int | None = None,
        pt_model_uri: str | type[nn.Module] = "qlib.contrib.model.pytorch_gru_ts.GRUModel",
        pt_model_kwargs: Mapping[str, Any] | None = None,
        variant: Literal["qlib", "paper"] = "qlib",
        missing: Literal["error", "fill"] = "error",
        drop_tail: bool = False,
        data_parall: bool = False,
        progress: bool | None = None,
    ) -> None:
        self._initialise(locals())
        self._check(
            optimizer=("adam", "gd", "sgd"),
            loss=("mse", "binary"),
            metric=("", "loss"),
            variant=("qlib", "paper"),
            missing=("error", "fill"),
        )

    def _fit(self, context: FitContext) -> None:
        train = self._load(context.dataset, "train", label=True, fill="mean", reweighter=context.reweighter)
        has_valid = "valid" in context.dataset.segments
        valid = self._load(context.dataset, "valid", label=True, fill="zero") if has_valid else None
        network = self._network(len(context.features))
        if self.seed is not None:
            torch.manual_seed(self.seed)  # Qlib seeds once its network is made
        module, device = self._distributed(context, network)
        share, ranks = my_share(self.data_parall)

        def loss(module: nn.Module, batch: Any) -> Tensor:
            out = self._outputs(module, batch.x[share])
            # This process's part of the batch's mean, times the number of processes, by which their gradients are divided.
            return self._loss(out, batch.y, batch.weight, share) * ranks

        def evaluation_loss(module: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
            count = torch.isfinite(batch.y).sum()
            x = batch.x[share]
            if len(x) == 0:
                return batch.y.new_zeros(()), count / ranks
            return self._loss(self._outputs(module, x), batch.y, None, share) * ranks, count / ranks

        trainer = Trainer(
            epochs=self.n_epochs,
            optimizer=self.optimizer,
            lr=self.lr,
            weight_decay=self.weight_decay,
            clip_value=_CLIP_VALUE,
            patience=self.early_stop,
            scheduler=plateau,
            callbacks=context.callbacks,
            progress=self.progress,
            capture=context.capture,
            checkpoint=context.checkpoint("train"),
            name="train",
        )
        sets = {"train": self._loader(train, device, shuffle=True, drop_last=self.drop_tail)}
        if valid is not None:
            sets["valid"] = self._loader(valid, device, shuffle=False, drop_last=self.drop_tail)
        try:
            trainer.fit(
                module,
                loss,
                self._loader(train, device, shuffle=True, drop_last=True),
                sets,
                evaluation_loss=evaluation_loss,
                feature_names=context.features,
                fingerprint=self._fingerprint(context, train=train, **({} if valid is None else {"valid": valid})),
                resume=context.resume,
            )
        finally:
            for name in sets:
                context.evals_result[name] = [record[name] for record in trainer.history]
            # Also after an error or an interrupt: the network then holds the best weights so far.
            if trainer.history:
                self._keep(network, context.known_features, len(context.features))
        self._keep(network, context.known_features, len(context.features))

    def _loader(self, rows: Rows, device: torch.device, *, shuffle: bool, drop_last: bool) -> RowBatches:
        """Batches in the order in which Qlib's DataLoader visits them, drawing the numbers that it draws."""
        options = {"batch_size": self.batch_size, "drop_last": drop_last, "weight": rows.weight, "device": device}
        if isinstance(rows.x, Windows):
            return WindowBatches(rows.x, rows.y, shuffle=shuffle, **options)
        return RowBatches(rows.x, rows.y, shuffle=LoaderOrder(shuffle), **options)

    def _loss(self, out: Tensor, label: Tensor, weight: Tensor | None, share: slice) -> Tensor:
        """The part that some rows have in the batch's mean loss.

        Args:
            out: the outputs of the rows of `share`, [b] or [b, 1].
            label, weight: [B], of the whole batch.
        """
        if self.loss == "binary":
            whole = binary(out.reshape(-1), label[share], None if weight is None else weight[share])
            return whole * _portion(label, share)
        if self.variant == "paper":
            whole = mse(out.reshape(-1), label[share], None if weight is None else weight[share])
            return whole * _portion(label, share)
        seen = ~torch.isnan(label)
        count = seen.sum().clamp(min=1)
        if weight is None:
            weight = torch.ones_like(label)
        if out.dim() == 2:
            mean_weight = torch.where(seen, weight, 0.0).sum() / count
            return mse(out.squeeze(1), label[share]) * _portion(label, share) * mean_weight
        if not self._warned:
            self._warned = True
            logger.warning(
                "GeneralPTNN: the network gives [B], which Qlib's loss compares with labels of shape [B, 1]: every prediction with "
                'every label, so that it learns their mean only; variant="paper" compares each with its own'
            )
        # The mean over all pairs of w_j (p_j - y_i)^2 is that of w_j ((p_j - m)^2 + s), with the labels' mean m and variance s.
        known = torch.where(seen, label, 0.0)
        mean = known.sum() / count
        spread = torch.where(seen, label - mean, 0.0).square().sum() / count
        squared = (out.reshape(-1) - mean).square() + spread
        return torch.where(seen[share], squared * weight[share], 0.0).sum() / count

    _warned = False


def _portion(label: Tensor, share: slice) -> Tensor | float:
    """How many of the batch's rows with a label are among those of `share`, as a share of them."""
    if share.step == 1:
        return 1.0
    seen = ~torch.isnan(label)
    return seen[share].sum() / seen.sum().clamp(min=1)


def plateau(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.ReduceLROnPlateau:
    """Qlib's scheduler for this model."""
    return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **_PLATEAU)


class LoaderOrder:
    """In the place of a RandomState: puts rows in the order in which a DataLoader visits them."""

    def __init__(self, shuffled: bool) -> None:
        self._shuffled = shuffled

    def shuffle(self, order: np.ndarray) -> None:
        order[:] = loader_order(len(order), shuffle=self._shuffled)
