"""What every estimator shares: parameters, seeding, checks, prediction in index order, and one file to save to.

A subclass stores each constructor argument under its own name, as scikit-learn's do, and says how its network is
built, trained and called.
"""

from __future__ import annotations

import inspect
import json
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from alphakernels.data import Batch, GivenWindows, RowBatches, Windows
from alphakernels.estimators._arrays import (
    ArrayDataset,
    SklearnInterface,
    array_segment,
    check_column_count,
    is_dataset,
    is_named,
    not_fitted,
    training_arrays,
)
from alphakernels.estimators._device import own_random_streams, resolve_device
from alphakernels.estimators._parameters import check_parameters
from alphakernels.estimators._qlib_checkpoint import is_torch_file
from alphakernels.estimators._segments import Rows, check_features, load_rows, weigh
from alphakernels.ops._library import empty_cache
from alphakernels.training import Callback, CheckpointError, load_module_state, load_tensors, save_tensors
from alphakernels.training.loop import check_callbacks

# Of a saved model's tensors, those which are not the network's.
_EXTRA = "extra."


@dataclass(frozen=True)
class FitContext:
    """What a fit works with, handed to the subclass.

    Attributes:
        dataset: the dataset. features: its feature names. device: where to compute.
        random_state: the NumPy stream for shuffling; seeded, and nobody else's.
        evals_result: the caller's dict, to be filled.
        checkpoint_dir: folder for resuming, or None. resume: whether to go on from it.
        callbacks: the caller's callbacks.
        reweighter: see `weigh`.
        capture: see `Trainer`.
    """

    dataset: Any
    features: list[str]
    device: torch.device
    random_state: np.random.RandomState
    evals_result: dict[str, list[float]]
    checkpoint_dir: Path | None
    resume: bool
    callbacks: tuple[Callback, ...]
    reweighter: Any = None
    capture: bool = True

    @property
    def known_features(self) -> list[str] | None:
        """The feature names to compare later datasets with; None where they were made up for an array."""
        return self.features if is_named(self.dataset) else None

    def checkpoint(self, phase: str) -> Path | None:
        return None if self.checkpoint_dir is None else self.checkpoint_dir / f"{phase}.safetensors"


class Estimator(SklearnInterface, ABC):
    """Base of the estimators. `fit` and `predict` take a dataset, or arrays as scikit-learn's do.

    Attributes:
        module_: the trained network, on its device, in eval mode; None before `fit` or `load`.
        features_: names of the features it was trained on; None if not known (arrays, or weights from elsewhere).
        evals_result_: scores by epoch of the latest fit: {"train": [...], "valid": [...]}. Their sign is that of Qlib's models: the
            negative loss, or with metric "ic" the correlation, so that more is better; but the loss itself, of which less is
            better, in GeneralPTNN and DNNModelPytorch.
    """

    # Of a subclass: constructor arguments which say how to run and not what to compute.
    _run_parameters: ClassVar[frozenset[str]] = frozenset({"GPU", "progress"})
    _takes_windows: ClassVar[bool] = False

    GPU: int | str | torch.device
    batch_size: int
    seed: int | None
    missing: str
    module_: nn.Module | None = None
    features_: list[str] | None = None
    evals_result_: dict[str, list[float]] = {}  # noqa: RUF012 (replaced by a fit, never written to)
    _n_features = 0

    def _initialise(self, parameters: dict[str, Any]) -> None:
        """Stores the constructor's arguments; called first by every subclass's `__init__`.

        Raises:
            ValueError: a number out of its range, or something else in its place.
        """
        for name in self._parameter_names():
            setattr(self, name, parameters[name])
        check_parameters(type(self).__name__, self.get_params())

    @classmethod
    def _parameter_names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments by name; `deep` is there for scikit-learn and changes nothing."""
        return {name: getattr(self, name) for name in self._parameter_names()}

    def set_params(self, **parameters: Any) -> Estimator:
        """Changes constructor arguments for the next fit.

        Raises:
            ValueError: an argument that the constructor does not have, or would refuse.
        """
        unknown = [name for name in parameters if name not in self._parameter_names()]
        if unknown:
            raise ValueError(
                f"{type(self).__name__}: parameters must be among {', '.join(self._parameter_names())}, "
                f"got {', '.join(unknown)}"
            )
        checked = type(self)(**{**self.get_params(), **parameters})
        for name in parameters:
            setattr(self, name, getattr(checked, name))
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.get_params().items())})"

    @property
    def fitted(self) -> bool:
        return self.module_ is not None

    def fit(
        self,
        dataset: Any,
        y: Any = None,
        save_path: str | os.PathLike[str] | None = None,
        reweighter: Any = None,
        *,
        evals_result: dict[str, list[float]] | None = None,
        eval_set: Any = None,
        dates: Any = None,
        instruments: Any = None,
        resume: bool = False,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        callbacks: Sequence[Callback] = (),
        capture: bool = True,
    ) -> Estimator:
        """Trains on the dataset's "train" segment, choosing the epoch by its "valid" segment.

        The global random states of torch and NumPy are left as they were. Fitting again starts anew. torch's belongs to the whole
        process: threads that fit take turns, and to fit at once takes processes. A thread that draws from it, or loads a model,
        while another fits changes that fit.

        Args:
            dataset: a `PanelDataset`, or anything with its `features`, `segments` and `segment(name)`; or features X [N, D]
                ([N, T, D] for a model of windows) as an array, a tensor or a frame, with `y`.
            y: with arrays, their labels [N], NaN where not observed. With a dataset, a dict here is `evals_result`, which
                stands in this place in Qlib's models.
            save_path: where to `save` the fitted model.
            reweighter: how much each row counts in the training: a function, or an object with a method `reweight`,
                from the segment to its rows' weights, [N] or a Series by (datetime, instrument). Evaluation is unweighted.
            evals_result: a dict that receives the scores by epoch, as Qlib's models do.
            eval_set: with arrays, (X, y), (X, y, dates) or (X, y, dates, instruments) to choose the epoch by; without it the
                rows trained on choose it.
            dates, instruments: with arrays, [N] each, needed by models of whole days. A frame indexed by (datetime,
                instrument) brings them along.
            resume: go on from `checkpoint_dir` if it holds checkpoints of this very fit. After a kill the final
                weights are bitwise those of a fit that was never interrupted.
            checkpoint_dir: a folder for checkpoints, written at each epoch's end.
            callbacks: see `alphakernels.training.Callback`.
            capture: on a GPU replay training steps as a CUDA graph, where nothing but the batches' values changes from one to the
                next; the logger "alphakernels.training" tells whether, and why not.

        Raises:
            TypeError: an `evals_result` that is no dict, callbacks that are none.
            ValueError: features that do not fit the model; NaN or infinity in them (columns are named); a segment
                that is empty or has no finite label; with a dataset, arguments that belong to arrays.
            NonFiniteLossError: the loss became NaN; the best weights so far are kept, and `predict` uses them.
            CheckpointError: checkpoints of another fit.
        """
        if resume and checkpoint_dir is None:
            raise ValueError(f"{type(self).__name__}: resume=True needs checkpoint_dir, got None")
        owner, hint = type(self).__name__, ""
        if is_dataset(dataset):
            _refuse_arrays_arguments(owner, eval_set=eval_set, dates=dates, instruments=instruments)
            if y is not None:
                if evals_result is not None:
                    raise TypeError(f"{owner}: evals_result must be given once, got it by name and in the place of y, which is for arrays")
                evals_result, hint = y, "; a dataset holds its labels, and evals_result stands in the place of y"
        else:
            dataset = training_arrays(owner, dataset, y, eval_set, dates, instruments)
        if evals_result is not None and not isinstance(evals_result, MutableMapping):
            raise TypeError(f"{owner}: evals_result must be a dict, got {type(evals_result).__name__}{hint}")
        device = resolve_device(self.GPU)
        features = [str(name) for name in dataset.features]
        self.evals_result_ = {} if evals_result is None else evals_result
        context = FitContext(
            dataset=dataset,
            features=features,
            device=device,
            random_state=np.random.RandomState(self.seed),
            evals_result=self.evals_result_,
            checkpoint_dir=None if checkpoint_dir is None else Path(checkpoint_dir),
            resume=resume,
            callbacks=check_callbacks(owner, callbacks),
            reweighter=reweighter,
            capture=capture,
        )
        with own_random_streams(self.seed, device):
            try:
                self._fit(context)
            finally:
                empty_cache()  # what a step handed on to the next
        if save_path is not None:
            self.save(save_path)
        return self

    @abstractmethod
    def _fit(self, context: FitContext) -> None:
        """Trains, and hands the network to `_keep`. torch is seeded with `seed`."""

    @abstractmethod
    def _network(self, n_features: int) -> nn.Module:
        """A fresh network as `predict` calls it."""

    @abstractmethod
    def _scores(self, module: nn.Module, batch: Batch) -> Tensor:
        """Scores [B] of a batch."""

    def _saved_parameters(self) -> dict[str, Any]:
        """The constructor's arguments as a file keeps them."""
        return self.get_params()

    def _extra(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What predicting needs beside weights and parameters: tensors, and JSON values; saved with the model."""
        return {}, {}

    def _restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Takes what `_extra` gave."""
        del tensors, values

    def _keep(self, module: nn.Module, features: list[str] | None, n_features: int) -> None:
        self.module_ = module.eval()
        self.features_ = features
        self._n_features = n_features

    def _module(self) -> nn.Module:
        if self.module_ is None:
            raise not_fitted(f"{type(self).__name__} must be fitted first: call fit(dataset), or load(path)")
        return self.module_

    def _rows_to_predict(self, dataset: Any, segment: str) -> Rows:
        self._module()
        owner = type(self).__name__
        expected = self.features_ if is_named(dataset) else None
        check_features(dataset.features, expected, self._n_features, owner=owner)
        return self._load(dataset, segment, label=False, fill="zero")

    def _load(self, dataset: Any, name: str, *, label: bool, fill: str, reweighter: Any = None) -> Rows:
        """A checked segment, with weights if there is a reweighter."""
        rows = load_rows(dataset, name, label=label, missing=self.missing, fill=fill)
        if isinstance(rows.x, Windows) and not self._takes_windows:
            array = isinstance(rows.x, GivenWindows)
            got = "an array of windows [N, T, D]: give it X [N, D]" if array else "a dataset of windows: give it the panel itself"
            raise ValueError(f"{type(self).__name__} takes rows, got {got}")
        return weigh(rows, dataset.segment(name), reweighter)

    def _fingerprint(self, context: FitContext, **segments: Rows) -> dict[str, Any] | None:
        """What must be equal for a fit to be resumed: parameters, data and feature names."""
        if context.checkpoint_dir is None:
            return None
        parameters = json_parameters(self._saved_parameters())
        kept = {name: value for name, value in parameters.items() if name not in self._run_parameters}
        names = zlib.crc32("\n".join(context.features).encode())
        data = {f"{name} data": rows.digest() for name, rows in segments.items()}
        return {**kept, **data, "features": f"{len(context.features)}, crc32 {names:08x}"}

    def _batches(self, rows: Rows, **options: Any) -> RowBatches:
        return RowBatches(rows.x, rows.y, batch_size=self.batch_size, weight=rows.weight, **options)

    def _prediction_batches(self, rows: Rows, device: torch.device) -> Iterable[Batch]:
        """Every row once, in any order."""
        return self._batches(rows, device=device)

    def predict(
        self, dataset: Any, segment: str = "test", *, dates: Any = None, instruments: Any = None
    ) -> pd.Series | np.ndarray:
        """Scores of every row of a segment, as a float32 Series in the order of the segment's index.

        With features X in the place of the dataset (see `fit`), the scores of its rows as a float32 array [N].

        Raises:
            ValueError: not fitted; other features than in training; NaN or infinity in them; an empty segment.
        """
        module = self._module()
        if not is_dataset(dataset):
            given = array_segment(type(self).__name__, segment, dataset, None, dates, instruments)
            check_column_count(type(self).__name__, len(given.segment.features), self._n_features)
            return given.as_given(self.predict(ArrayDataset({segment: given}), segment).to_numpy())
        _refuse_arrays_arguments(type(self).__name__, dates=dates, instruments=instruments)
        rows = self._rows_to_predict(dataset, segment)
        scores = np.empty(len(rows.index), dtype=np.float32)
        with torch.inference_mode():
            for batch in self._prediction_batches(rows, next(module.parameters()).device):
                scores[batch.rows] = self._scores(module, batch).cpu().numpy()
        return pd.Series(scores, index=rows.index, name="score")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes weights, parameters and feature names to one safetensors file, in one step.

        Raises:
            ValueError: not fitted.
            OSError: it could not be written; a previous file is as it was.
        """
        tensors, values = self._extra()
        metadata = {
            "kind": "model",
            "class": type(self).__name__,
            "parameters": json_parameters(self._saved_parameters()),
            "n_features": self._n_features,
            "features": self.features_,
            "evals_result": self.evals_result_,
            "extra": values,
        }
        extra = {_EXTRA + name: tensor for name, tensor in tensors.items()}
        save_tensors(path, {**self._module().state_dict(), **extra}, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: int | str | torch.device | None = None) -> Estimator:
        """Reads what `save` wrote; no code of the file is run.

        Args:
            device: where the model goes; by default where it was trained, or the CPU if that is not here.

        Raises:
            FileNotFoundError: no such file.
            CheckpointError: truncated, corrupt, or of another class, size or version.
        """
        source = f"checkpoint {os.fspath(path)}"
        try:
            tensors, metadata = load_tensors(path)
        except CheckpointError:
            if not is_torch_file(path):
                raise
            raise CheckpointError(
                f"{source}: expected a file that save wrote, got one of torch.save; if it is the state dict of Qlib's model, use "
                f"{cls.__name__}(...).load_qlib_checkpoint(path, ...) with its hyper-parameters"
            ) from None
        if metadata.get("kind") != "model" or metadata.get("class") != cls.__name__:
            raise CheckpointError(
                f"{source}: expected a saved {cls.__name__}, got a {metadata.get('kind')} of class "
                f"{metadata.get('class')}; load it with that class"
            )
        parameters: dict[str, Any] = metadata["parameters"]
        unknown = [name for name in parameters if name not in cls._parameter_names()]
        if unknown:
            raise CheckpointError(
                f"{source}: expected parameters that {cls.__name__} has, got also {', '.join(unknown)}; "
                "read it with the alphakernels version that wrote it"
            )
        if device is not None:
            parameters["GPU"] = device
        elif str(parameters["GPU"]).startswith("cuda") and not torch.cuda.is_available():
            parameters["GPU"] = -1
        model = cls(**parameters)
        extra = {name[len(_EXTRA) :]: tensors.pop(name) for name in list(tensors) if name.startswith(_EXTRA)}
        model._restore(extra, metadata.get("extra", {}))
        with torch.random.fork_rng(devices=[]):  # building draws initial weights
            module = model._network(metadata["n_features"])
        load_module_state(module, tensors, source=source, saved_class=metadata["class"])
        model._keep(module.to(resolve_device(model.GPU)), metadata["features"], metadata["n_features"])
        model.evals_result_ = metadata["evals_result"]
        return model


def _refuse_arrays_arguments(owner: str, **arguments: Any) -> None:
    given = [name for name, value in arguments.items() if value is not None]
    if given:
        raise ValueError(f"{owner}: {', '.join(given)} must be left out with a dataset, which has its own: they belong to arrays X")


def json_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments as JSON values: devices and paths by name, classes and functions by import path, NumPy scalars as
    numbers, and of a module, which is weights, nothing."""

    def plain(value: Any) -> Any:
        if isinstance(value, nn.Module):
            return None
        if inspect.isclass(value) or inspect.isroutine(value):
            return f"{value.__module__}.{value.__qualname__}"
        return value.item() if isinstance(value, np.generic) else str(value)

    return json.loads(json.dumps(parameters, default=plain))
