"""Estimators: a network with its training. fit, predict, save, load."""

from __future__ import annotations

from alphakernels.estimators._base import Estimator
from alphakernels.estimators.recurrent import ALSTMModel, GRUModel, LSTMModel
from alphakernels.estimators.tabnet import TabNetModel

__all__ = ["ALSTMModel", "Estimator", "GRUModel", "LSTMModel", "TabNetModel"]
