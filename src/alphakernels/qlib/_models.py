"""Qlib's models, each a few lines over its estimator. `TABLE` says which original each takes the place of."""

from __future__ import annotations

from typing import Any

from alphakernels import estimators
from alphakernels.estimators import Estimator
from alphakernels.training import Callback

from ._model import QlibModel
from ._recorder import StepLog


class TabnetModel(QlibModel):
    __doc__ = estimators.TabNetModel.__doc__
    estimator_class = estimators.TabNetModel
    defaults = {"missing": "fill"}
    network_name = "tabnet_model"


class GRU(QlibModel):
    __doc__ = estimators.GRUModel.__doc__
    estimator_class = estimators.GRUModel
    complete = True
    network_name = "gru_model"
    windows_network_name = "GRU_model"


class LSTM(QlibModel):
    __doc__ = estimators.LSTMModel.__doc__
    estimator_class = estimators.LSTMModel
    network_name = "lstm_model"
    windows_network_name = "LSTM_model"


class ALSTM(QlibModel):
    __doc__ = estimators.ALSTMModel.__doc__
    estimator_class = estimators.ALSTMModel
    network_name = "ALSTM_model"


class SFM(QlibModel):
    __doc__ = estimators.SFMModel.__doc__
    estimator_class = estimators.SFMModel
    network_name = "sfm_model"


class GeneralPTNN(QlibModel):
    __doc__ = estimators.GeneralPTNN.__doc__
    estimator_class = estimators.GeneralPTNN
    network_name = "dnn_model"

    def predict(self, dataset: Any, segment: Any = "test", batch_size: int | None = None, n_jobs: int | None = None):
        """As `QlibModel.predict`; `batch_size` and `n_jobs` are there for Qlib's sake and change nothing."""
        # The original's second argument is the batch size.
        return super().predict(dataset, "test" if segment is None or isinstance(segment, int) else segment)


class DNNModelPytorch(QlibModel):
    __doc__ = estimators.DNNModelPytorch.__doc__
    estimator_class = estimators.DNNModelPytorch
    network_name = "dnn_model"

    def _callbacks(self) -> tuple[Callback, ...]:
        return (StepLog(self.estimator.eval_steps, self.estimator.max_steps),)

    def _log(self) -> None:
        """Done step by step."""

    def fit(self, dataset: Any, evals_result: Any = None, verbose: bool = True, save_path: Any = None, reweighter: Any = None) -> None:
        """As `QlibModel.fit`; `verbose` is there for Qlib's sake and changes nothing."""
        super().fit(dataset, evals_result, save_path, reweighter)


_LARGER_BATCHES = {"batch_size": 8192}  # of the time-series variants


class LocalformerModel(QlibModel):
    __doc__ = estimators.LocalformerModel.__doc__
    estimator_class = estimators.LocalformerModel
    network_name = "model"
    windows_defaults = _LARGER_BATCHES


class TransformerModel(QlibModel):
    __doc__ = estimators.TransformerModel.__doc__
    estimator_class = estimators.TransformerModel
    network_name = "model"
    windows_defaults = _LARGER_BATCHES


class GATs(QlibModel):
    __doc__ = estimators.GATsModel.__doc__
    estimator_class = estimators.GATsModel
    network_name = "GAT_model"
    windows_defaults = {"d_feat": 20}


class HIST(QlibModel):
    __doc__ = estimators.HISTModel.__doc__
    estimator_class = estimators.HISTModel
    network_name = "HIST_model"

    def _make(self, windows: bool) -> Estimator:
        # The original gives stocks that are not in stock_index this row of its file.
        if str(self.given.get("stock2concept")).endswith(".npy"):
            return self.estimator_class(**{"default_row": 733, **self.given})
        return super()._make(windows)


_PYTORCH = "qlib.contrib.model.pytorch_"

# Original by import path -> ours.
TABLE: dict[str, type[QlibModel]] = {
    f"{_PYTORCH}tabnet.TabnetModel": TabnetModel,
    f"{_PYTORCH}gru.GRU": GRU,
    f"{_PYTORCH}gru_ts.GRU": GRU,
    f"{_PYTORCH}lstm.LSTM": LSTM,
    f"{_PYTORCH}lstm_ts.LSTM": LSTM,
    f"{_PYTORCH}alstm.ALSTM": ALSTM,
    f"{_PYTORCH}alstm_ts.ALSTM": ALSTM,
    f"{_PYTORCH}sfm.SFM": SFM,
    f"{_PYTORCH}general_nn.GeneralPTNN": GeneralPTNN,
    f"{_PYTORCH}nn.DNNModelPytorch": DNNModelPytorch,
    f"{_PYTORCH}localformer.LocalformerModel": LocalformerModel,
    f"{_PYTORCH}localformer_ts.LocalformerModel": LocalformerModel,
    f"{_PYTORCH}transformer.TransformerModel": TransformerModel,
    f"{_PYTORCH}transformer_ts.TransformerModel": TransformerModel,
    f"{_PYTORCH}gats.GATs": GATs,
    f"{_PYTORCH}gats_ts.GATs": GATs,
    f"{_PYTORCH}hist.HIST": HIST,
}

__all__ = ["TABLE", *sorted({cls.__name__ for cls in TABLE.values()})]

for _cls in TABLE.values():
    # Where configs and pickles name them.
    _cls.__module__ = "alphakernels.qlib"
