"""Figures from arrays and frames. Nothing here touches pyplot's global state; matplotlib is imported when a figure is drawn."""

from .report import attention_profile, daily_ic, feature_importances, learning_curves, score_groups, training_report

__all__ = ["attention_profile", "daily_ic", "feature_importances", "learning_curves", "score_groups", "training_report"]
