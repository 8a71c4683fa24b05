"""Estimators: a network with its training. fit, predict, save, load."""

from __future__ import annotations

from alphakernels.estimators._base import Estimator
from alphakernels.estimators.tabnet import TabNetModel

__all__ = ["Estimator", "TabNetModel"]
