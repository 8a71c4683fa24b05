"""TabNetModel: TabNet as a regressor of returns, with Qlib's hyper-parameters and, by default, Qlib's arithmetic.

Arik & Pfister 2019, arXiv:1908.07442; Qlib's qlib.contrib.model.pytorch_tabnet. The same seed, hyper-parameters and
data give Qlib's initial weights, masks, batches and losses.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from alphakernels.data import Batch, RowBatches
from alphakernels.estimators._base import Estimator, FitContext, json_parameters
from alphakernels.estimators._device import resolve_device
from alphakernels.estimators._qlib_checkpoint import read_state_dict
from alphakernels.estimators._segments import Rows
from alphakernels.estimators._tabnet_pretraining import (
    Hiding,
    Pretraining,
    TailJoined,
    draw_hidden,
    draw_hidden_for_evaluation,
    reconstruction_loss,
)
from alphakernels.models import TabNet, TabNetDecoder, TabNetFinetune
from alphakernels.training import CheckpointError, Trainer, load_module_state, mse, save_tensors

# Of Qlib's fine-tuning.
_CLIP_VALUE = 3.0


class TabNetModel(Estimator):
    """TabNet with optional pretraining by masked reconstruction.

    The two variants:
        "qlib" (default) reproduces Qlib: the head is not trained, priors are not updated, the sparsity term is
        left out, n_d, n_a, n_shared, n_ind and n_steps do not reach the encoder (the last three do reach the
        decoder), and the pretraining loss divides by the spread of the reconstruction.
        "paper" does what the paper says in each of these.

    Args:
        d_feat: number of features; None takes it from the dataset.
        out_dim: width of the encoder's output. final_out_dim: must be 1.
        batch_size: rows a step. The rows left over at the end of a shuffled epoch are not trained on.
        n_d, n_a: widths of the decision and the attention part of a step.
        n_shared, n_ind, n_steps: shared and independent layers of a feature transformer; steps.
        n_epochs, pretrain_n_epochs: the most epochs of fine-tuning and of pretraining.
        relax: how freely a feature is used again in later steps (gamma of the paper).
        vbs: virtual batch size of the ghost batch norm.
        seed: of everything random. Global random states are not touched.
        optimizer: "adam" or "gd". loss: "mse". metric: "" or "loss". pretrain_loss: "custom".
        early_stop: epochs without improvement until it stops; in pretraining counted over all epochs, as Qlib does.
        GPU: see `resolve_device`: int, str, torch.device, or -1 for the CPU.
        ps: probability that pretraining hides an entry.
        lr: learning rate of both phases.
        pretrain: whether to pretrain. It uses the segments "pretrain" and "pretrain_validation", or "train" and
            "valid" where the dataset has none.
        pretrain_file: where to write the pretrained encoder (safetensors); None keeps it in memory only.
        variant: "qlib" or "paper".
        missing: NaN in features: "error" names the columns; "fill" does as Qlib: the mean of the column in the
            segments trained on, zero elsewhere. Rows whose label is NaN are always skipped.
        drop_tail: evaluate full batches only, as Qlib does; by default every row is evaluated.
        lambda_sparse: weight of the sparsity term, the mean entropy of a row's mask (variant "paper").
        progress: a progress bar: True, False, or None for "where standard error is a terminal".

    Raises:
        ValueError: an argument outside what is said above.
    """

    _run_parameters = Estimator._run_parameters | {"pretrain_file"}

    def __init__(
        self,
        d_feat: int | None = 158,
        out_dim: int = 64,
        final_out_dim: int = 1,
        batch_size: int = 4096,
        n_d: int = 64,
        n_a: int = 64,
        n_shared: int = 2,
        n_ind: int = 2,
        n_steps: int = 5,
        n_epochs: int = 100,
        pretrain_n_epochs: int = 50,
        relax: float = 1.3,
        vbs: int = 2048,
        seed: int = 993,
        optimizer: str = "adam",
        loss: str = "mse",
        metric: str = "",
        early_stop: int = 20,
        GPU: int | str | torch.device = 0,
        pretrain_loss: str = "custom",
        ps: float = 0.3,
        lr: float = 0.01,
        pretrain: bool = True,
        pretrain_file: str | os.PathLike[str] | None = None,
        variant: Literal["qlib", "paper"] = "qlib",
        missing: Literal["error", "fill"] = "error",
        drop_tail: bool = False,
        lambda_sparse: float = 1e-3,
        progress: bool | None = None,
    ) -> None:
        self._initialise(locals())
        for name, allowed in (
            ("optimizer", ("adam", "gd", "sgd")),
            ("loss", ("mse",)),
            ("metric", ("", "loss")),
            ("pretrain_loss", ("custom",)),
            ("variant", ("qlib", "paper")),
            ("missing", ("error", "fill")),
            ("final_out_dim", (1,)),
        ):
            value = getattr(self, name)
            if (str(value).lower() if name == "optimizer" else value) not in allowed:
                raise ValueError(f"TabNetModel: {name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
        if variant == "paper" and n_steps < 2:
            raise ValueError(f"TabNetModel: n_steps must be at least 2, of which the first gives no output, got {n_steps}")

    def _encoder(self, n_features: int) -> TabNet:
        sizes: dict[str, Any] = {"out_dim": self.out_dim, "vbs": self.vbs, "relax": self.relax}
        if self.variant == "paper":
            sizes |= {name: getattr(self, name) for name in ("n_d", "n_a", "n_shared", "n_ind", "n_steps")}
        return TabNet(n_features, variant=self.variant, **sizes)

    def _network(self, n_features: int) -> TabNetFinetune:
        return TabNetFinetune(self.out_dim, self.final_out_dim, self._encoder(n_features))

    def _scores(self, module: nn.Module, batch: Batch) -> Tensor:
        return module(batch.x, torch.ones_like(batch.x))

    def _fit(self, context: FitContext) -> None:
        n_features = len(context.features)
        if self.d_feat not in (None, n_features):
            raise ValueError(
                f"TabNetModel: d_feat must be the dataset's number of features, {n_features}, got {self.d_feat}; "
                "d_feat=None takes it from the dataset"
            )
        # The order of what draws from the random stream is Qlib's, down to a decoder that may not be used.
        encoder = self._encoder(n_features)
        decoder = TabNetDecoder(self.out_dim, n_features, self.n_shared, self.n_ind, self.vbs, self.n_steps)
        train = self._segment(context, "train", "mean")
        valid = self._segment(context, "valid", "zero")
        if self.pretrain:
            self._pretrain(context, Pretraining(encoder, decoder).to(context.device))
        network = TabNetFinetune(self.out_dim, self.final_out_dim, encoder).to(context.device)
        self._finetune(context, network, train, valid)

    def _segment(self, context: FitContext, name: str, fill: str, label: bool = True) -> Rows:
        reweighter = context.reweighter if label and name == "train" else None
        return self._load(context.dataset, name, label=label, fill=fill, reweighter=reweighter)

    def _trainer(self, context: FitContext, phase: str, **options: Any) -> Trainer:
        return Trainer(
            optimizer=self.optimizer,
            lr=self.lr,
            patience=self.early_stop,
            callbacks=context.callbacks,
            progress=self.progress,
            capture=context.capture,
            checkpoint=context.checkpoint(phase),
            name=phase,
            **options,
        )

    def _training_batches(self, context: FitContext, rows: Rows) -> RowBatches:
        return self._batches(rows, shuffle=context.random_state, drop_last=True, device=context.device)

    def _evaluation_batches(self, context: FitContext, rows: Rows) -> RowBatches:
        return self._batches(rows, drop_last=self.drop_tail, device=context.device)

    def _pretrain(self, context: FitContext, module: Pretraining) -> None:
        has_own = "pretrain" in context.dataset.segments
        train = self._segment(context, "pretrain" if has_own else "train", "mean", label=False)
        own_valid = "pretrain_validation" in context.dataset.segments
        valid = self._segment(context, "pretrain_validation" if own_valid else "valid", "mean", label=False)

        def loss(module: nn.Module, batch: Any) -> Tensor:
            hidden = batch.extras["hidden"]
            return reconstruction_loss(batch.x, hidden, module(batch.x, hidden), self.variant)

        training = partial(draw_hidden, probability=self.ps)
        evaluation = partial(draw_hidden_for_evaluation, probability=self.ps, batch_size=self.batch_size)
        self._trainer(context, "pretrain", epochs=self.pretrain_n_epochs, cumulative=True).fit(
            module,
            loss,
            Hiding(self._training_batches(context, train), training),
            {
                "train": Hiding(TailJoined(self._evaluation_batches(context, train)), evaluation),
                "valid": Hiding(TailJoined(self._evaluation_batches(context, valid)), evaluation),
            },
            random_state=context.random_state,
            feature_names=context.features,
            fingerprint=self._fingerprint(context, train=train, valid=valid),
            resume=context.resume,
        )
        if self.pretrain_file is not None:
            metadata = {
                "kind": "encoder",
                "class": "TabNet",
                "parameters": json_parameters(self.get_params()),
            }
            save_tensors(self.pretrain_file, module.encoder.state_dict(), metadata)

    def _finetune(self, context: FitContext, network: TabNetFinetune, train: Rows, valid: Rows) -> None:
        paper = self.variant == "paper"

        def loss(module: nn.Module, batch: Any) -> Tensor:
            priors = torch.ones_like(batch.x)
            if not paper:
                return mse(module(batch.x, priors), batch.y, batch.weight)
            vector, sparsity = module.model(batch.x, priors)
            # The network sums over steps the entropy per entry; the paper's term is per row, averaged over steps.
            sparsity = sparsity * (batch.x.shape[1] / max(len(module.model.steps), 1))
            return mse(module.fc(vector).squeeze(-1), batch.y, batch.weight) + self.lambda_sparse * sparsity

        def evaluation_loss(module: nn.Module, batch: Any) -> Tensor:
            return mse(self._scores(module, batch), batch.y)

        trainer = self._trainer(context, "finetune", epochs=self.n_epochs, clip_value=_CLIP_VALUE)
        try:
            trainer.fit(
                network,
                loss,
                self._training_batches(context, train),
                {
                    "train": self._evaluation_batches(context, train),
                    "valid": self._evaluation_batches(context, valid),
                },
                evaluation_loss=evaluation_loss,
                # Qlib makes its optimizer before it adds the head.
                parameters=None if paper else network.model.parameters(),
                random_state=context.random_state,
                feature_names=context.features,
                fingerprint=self._fingerprint(context, train=train, valid=valid),
                resume=context.resume,
            )
        finally:
            for name in ("train", "valid"):
                context.evals_result[name] = [-record[name] for record in trainer.history]
            # Also after an error or an interrupt: the network then holds the best weights so far.
            if trainer.history:
                self._keep(network, context.known_features, len(context.features))
        self._keep(network, context.known_features, len(context.features))

    def load_qlib_checkpoint(self, path: str | os.PathLike[str]) -> TabNetModel:
        """Takes the weights of Qlib's fitted TabnetModel, from the state dict its `fit` saved with torch.save.

        The hyper-parameters are this model's; `d_feat=None` is read from the weights. Feature names are not known
        to such a file, so `predict` can check their number only.

        Raises:
            FileNotFoundError: no such file.
            CheckpointError: not a state dict that can be read without running code, or of another model.
        """
        state = read_state_dict(path)
        source = f"checkpoint {os.fspath(path)}"
        if "model.bn.weight" not in state:
            hint = ""
            if "bn.weight" in state:
                hint = "; this is a pretrained encoder without its head, which cannot predict"
            got = ", ".join(map(repr, list(state)[:3]))
            raise CheckpointError(f"{source}: expected the state dict of Qlib's fine-tuned TabNet, got {got}{hint}")
        n_features = len(state["model.bn.weight"]) if self.d_feat is None else self.d_feat
        with torch.random.fork_rng(devices=[]):
            network = self._network(n_features)
        load_module_state(network, state, source=source, saved_class="Qlib's TabnetModel")
        self._keep(network.to(resolve_device(self.GPU)), None, n_features)
        return self

    def explain(self, dataset: Any, segment: str = "test") -> pd.DataFrame:
        """How much each feature counted in each row: the steps' masks, weighted by the steps' part in the decision.

        The paper's aggregate mask (section 3.3), normalised by row.

        Returns:
            float32 DataFrame, index of the segment x features. A row sums to 1, or to 0 where no step had a part.

        Raises:
            ValueError: as `predict`; a network of one step, which has no mask.
        """
        rows = self._rows_to_predict(dataset, segment)
        masks = torch.cat([mask.cpu() for mask in self._local_masks(rows)])
        return pd.DataFrame(masks.numpy(), index=rows.index, columns=[str(name) for name in dataset.features])

    def feature_importances(self, dataset: Any, segment: str = "test") -> pd.Series:
        """The sum of `explain`'s rows, divided by its total: float64 [D] by feature name, sums to 1.

        It goes batch by batch and never holds the masks of all rows.
        """
        rows = self._rows_to_predict(dataset, segment)
        total = sum(mask.sum(dim=0, dtype=torch.float64).cpu() for mask in self._local_masks(rows))
        names = [str(name) for name in dataset.features]
        return pd.Series((total / total.sum()).numpy(), index=names, name="importance")

    def _local_masks(self, rows: Rows) -> Iterator[Tensor]:
        """The aggregate mask [B, D] of each batch."""
        module = self._module()
        with torch.inference_mode():
            for batch in self._batches(rows, device=next(module.parameters()).device):
                masks, weights = module.model.masks(batch.x, torch.ones_like(batch.x))
                if not masks:
                    raise ValueError("TabNetModel: n_steps must be at least 2 for masks to explain, got 1")
                mask = sum(mask * weight.unsqueeze(1) for mask, weight in zip(masks, weights, strict=True))
                total = mask.sum(dim=1, keepdim=True)
                yield mask / torch.where(total > 0, total, 1.0)
