"""Figures from arrays and frames. Nothing here touches pyplot's global state; matplotlib is imported when a figure is drawn."""

from .report import daily_ic, feature_importances, learning_curves, training_report

__all__ = ["daily_ic", "feature_importances", "learning_curves", "training_report"]
