"""Estimators: a network with its training. fit, predict, save, load."""

from __future__ import annotations

from alphakernels.estimators._base import Estimator
from alphakernels.estimators.dnn import DNNModelPytorch
from alphakernels.estimators.encoder import LocalformerModel, TransformerModel
from alphakernels.estimators.general import GeneralPTNN
from alphakernels.estimators.graph import GATsModel, HISTModel
from alphakernels.estimators.recurrent import ALSTMModel, GRUModel, LSTMModel
from alphakernels.estimators.sfm import SFMModel
from alphakernels.estimators.tabnet import TabNetModel

__all__ = [
    "ALSTMModel",
    "DNNModelPytorch",
    "Estimator",
    "GATsModel",
    "GRUModel",
    "GeneralPTNN",
    "HISTModel",
    "LSTMModel",
    "LocalformerModel",
    "SFMModel",
    "TabNetModel",
    "TransformerModel",
]
