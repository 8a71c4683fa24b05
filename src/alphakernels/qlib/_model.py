"""What the bridge's classes share: Qlib's Model over one of our estimators."""

from __future__ import annotations

import inspect
import os
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from qlib.data.dataset import TSDatasetH
from qlib.data.dataset.weight import Reweighter
from qlib.model.base import Model
from qlib.utils import get_or_create_path
from torch import nn

from alphakernels._near import check_arguments
from alphakernels.estimators import Estimator
from alphakernels.training import Callback

from ._dataset import InferenceData, LearningData, fetch
from ._recorder import log_scores


class QlibModel(Model):
    """A Qlib model that trains and predicts on an estimator of `alphakernels.estimators`.

    The constructor takes the estimator's arguments, which are the original's under the original's names, with its defaults.
    Where the original drops the last rows of an evaluated segment, `drop_tail` is True here, so that the scores are the original's.

    Attributes:
        estimator: the estimator, fitted by `fit`.
    """

    estimator_class: ClassVar[type[Estimator]]
    # Arguments that Qlib's configs pass and the original takes without using them.
    ignored: ClassVar[frozenset[str]] = frozenset({"n_jobs"})
    # Defaults in the place of the estimator's, and those of the time-series variant where they differ.
    defaults: ClassVar[dict[str, Any]] = {}
    windows_defaults: ClassVar[dict[str, Any]] = {}
    complete: ClassVar[bool] = False  # trains on the rows without NaN
    network_name: ClassVar[str]  # the original's attribute that holds the network, and its time-series variant's
    windows_network_name: ClassVar[str | None] = None

    estimator: Estimator

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        parameters = inspect.signature(cls.estimator_class.__init__).parameters
        if "drop_tail" in parameters:
            cls.defaults = {"drop_tail": True, **cls.defaults}
        cls.__signature__ = inspect.Signature(
            [p.replace(default=cls.defaults.get(name, p.default), annotation=p.empty) for name, p in parameters.items() if name != "self"]
        )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        known = type(self).__signature__.parameters
        kwargs = {name: value for name, value in kwargs.items() if name in known or name not in self.ignored}
        kwargs |= dict(zip(known, args, strict=False))
        if len(args) > len(known):
            raise TypeError(f"{type(self).__name__}: expected at most {len(known)} arguments, got {len(args)}")
        check_arguments(type(self).__name__, self.estimator_class, kwargs)
        self.given = kwargs
        self.estimator = self._make(windows=False)

    def _make(self, windows: bool) -> Estimator:
        defaults = {**self.defaults, **(self.windows_defaults if windows else {})}
        return self.estimator_class(**{**defaults, **self.given})

    @property
    def fitted(self) -> bool:
        return self.estimator.fitted

    def __getattr__(self, name: str) -> Any:
        # Only for what is not there: the original's attribute for its network.
        if name in (type(self).network_name, type(self).windows_network_name) and "estimator" in self.__dict__:
            return self._network()
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _network(self) -> nn.Module:
        if not self.fitted:
            raise AttributeError(f"{type(self).__name__}.{self.network_name} is there once the model is fitted")
        return self.estimator.module_

    def _callbacks(self) -> tuple[Callback, ...]:
        return ()

    def _log(self) -> None:
        log_scores(self.estimator.evals_result_)

    def fit(
        self,
        dataset: Any,
        evals_result: dict[str, list[float]] | None = None,
        save_path: str | os.PathLike[str] | None = None,
        reweighter: Reweighter | None = None,
    ) -> None:
        """Trains on the segments "train" and "valid" of a DatasetH or TSDatasetH.

        Args:
            dataset: Qlib's dataset.
            evals_result: receives the scores by epoch.
            save_path: where the best weights go, as a state dict that the original's network loads; by default a temporary file.
            reweighter: Qlib's Reweighter.

        Raises:
            ValueError: a segment that is missing, empty or without labels, NaN in features; each says which.
        """
        if reweighter is not None and not isinstance(reweighter, Reweighter):
            raise ValueError(f"reweighter must be a qlib.data.dataset.weight.Reweighter, got {type(reweighter).__name__}")
        self.estimator = self._make(windows=isinstance(dataset, TSDatasetH))
        data = LearningData(dataset, valid_key=getattr(self.estimator, "valid_key", "learn"), complete=self.complete)
        weigh = None if reweighter is None else lambda segment: data.weights(reweighter, segment)
        scores = {} if evals_result is None else evals_result
        self.estimator.fit(data, evals_result=scores, reweighter=weigh, callbacks=self._callbacks())
        torch.save(self.estimator.module_.state_dict(), get_or_create_path(None if save_path is None else str(save_path)))
        self._log()

    def predict(self, dataset: Any, segment: str | slice = "test") -> pd.Series:
        """Scores by (datetime, instrument), in Qlib's order. A row whose features are not all there has the score NaN, as in Qlib.

        Raises:
            ValueError: not fitted, a segment that is missing or empty.
        """
        if not self.fitted:
            raise ValueError("model is not fitted yet!")
        fetched = fetch(dataset, segment, "infer", label=False)
        if getattr(self.estimator, "missing", None) == "fill":
            data = _Whole(fetched.segment)
            scores = self.estimator.predict(data, "test").to_numpy()
        else:
            data = InferenceData(fetched)
            scores = self.estimator.predict(data, "test").to_numpy()
            scores = np.where(data.usable, scores, np.float32(np.nan))
        return pd.Series(scores[fetched.order], index=fetched.index)

    def load_qlib_checkpoint(self, path: str | os.PathLike[str], dataset: Any = None) -> QlibModel:
        """Takes the weights which the original's `fit` wrote to its `save_path`.

        Args:
            dataset: a dataset as the model was trained on; models of rows or windows are told by it how many features there are.

        Raises:
            CheckpointError: not a state dict, or of another model. ValueError: the model needs the dataset.
        """
        windows = isinstance(dataset, TSDatasetH)
        estimator = self._make(windows)
        options: dict[str, Any] = {}
        wanted = inspect.signature(estimator.load_qlib_checkpoint).parameters
        if "n_features" in wanted and dataset is not None:
            options["n_features"] = len(dataset.handler.get_cols(col_set="feature"))
            if windows and "step_len" in wanted:
                options["step_len"] = dataset.step_len
        elif "n_features" in wanted and wanted["n_features"].default is inspect.Parameter.empty:
            raise ValueError(f"{type(self).__name__}: load_qlib_checkpoint needs a dataset as the model was trained on, got None")
        self.estimator = estimator.load_qlib_checkpoint(path, **options)
        return self

    # What a pickle holds is the arguments and a checkpoint: no class of a network, nothing of a GPU.
    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in super().__getstate__().items() if key != "estimator"}
        if self.fitted:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.safetensors"
                self.estimator.save(path)
                state["checkpoint"] = path.read_bytes()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        checkpoint = state.pop("checkpoint", None)
        self.__dict__.update(state)
        if checkpoint is None:
            self.estimator = self._make(windows=False)
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            path.write_bytes(checkpoint)
            self.estimator = self.estimator_class.load(path)


class _Whole:
    """One segment as it is, for a model that fills what is missing."""

    def __init__(self, segment: Any) -> None:
        self._segment, self.features, self.segments = segment, segment.features, {"test": (None, None)}

    def segment(self, name: str) -> Any:
        return self._segment
