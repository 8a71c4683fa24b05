"""What demo and train share: fit with a record of every phase, scores, files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import typer

from alphakernels import estimators
from alphakernels.data import PanelDataset, WindowDataset
from alphakernels.estimators import ALSTMModel, Estimator, LocalformerModel, TransformerModel
from alphakernels.plotting import training_report
from alphakernels.training import Callback, TrainingState, ic_by_day, ic_summary

MODELS: dict[str, type[Estimator]] = {
    name.removesuffix("Model").lower(): getattr(estimators, name) for name in estimators.__all__ if name.endswith("Model")
}
ATTENTION_SAMPLES = 256  # looked at for the report
PHASES = {"pretrain": "pretraining", "finetune": "fine-tuning", "train": "training"}


def model_class(name: str) -> type[Estimator]:
    """The estimator of this name."""
    if name not in MODELS:
        raise ValueError(f"--model must be one of {', '.join(MODELS)}, got {name!r}")
    return MODELS[name]


class Record(Callback):
    """Keeps every phase's history."""

    def __init__(self) -> None:
        self.histories: dict[str, list[dict[str, Any]]] = {}

    def on_train_end(self, state: TrainingState) -> None:
        self.histories[PHASES.get(state.name, state.name)] = list(state.history)


def losses_table(histories: Mapping[str, list[dict[str, Any]]]) -> str:
    """What was measured after each epoch of all phases, as text."""
    lines = [f"{'phase':12s} {'epoch':>5s} {'train':>12s} {'valid':>12s}"]
    for phase, history in histories.items():
        for record in history:
            valid = f"{record['valid']:12.6f}" if "valid" in record else f"{'':12s}"
            lines.append(f"{phase:12s} {record['epoch'] + 1:5d} {record['train']:12.6f} {valid}")
    return "\n".join(lines)


def finish(model: Estimator, dataset: PanelDataset | WindowDataset, record: Record, out: Path, title: str) -> dict[str, float]:
    """Scores the test segment, prints the tables, writes predictions.csv, model.safetensors and report.png to `out`."""
    prediction = model.predict(dataset, "test")
    label = dataset.segment("test").label_series()
    summary = ic_summary(prediction, label)
    shown: dict[str, Any] = {"scored": (prediction, label)}
    if hasattr(model, "feature_importances"):
        shown = {"importances": model.feature_importances(dataset, "test")}
    elif isinstance(model, ALSTMModel):
        shown["attention"] = model.attention(dataset, "test")
    elif isinstance(model, (LocalformerModel, TransformerModel)):
        some = np.unique(np.linspace(0, len(prediction) - 1, ATTENTION_SAMPLES).astype(int))
        shown["attention"] = model.attention(dataset, "test", some).xs(0, level="days back")  # of the latest day, head by head
    prediction.to_frame().assign(label=label).to_csv(out / "predictions.csv")
    model.save(out / "model.safetensors")
    what = "mean daily IC" if getattr(model, "metric", "") == "ic" else "loss"
    figure = training_report(record.histories, ic_by_day(prediction, label), title, what=what, **shown)
    figure.savefig(out / "report.png", dpi=110)
    typer.echo(losses_table(record.histories))
    typer.echo("")
    ic, rank_ic = (f"{summary[name]:+.4f} (ICIR {summary[name + 'ir']:+.3f})" for name in ("ic", "rank_ic"))
    typer.echo(f"test IC {ic}   Rank IC {rank_ic}")
    return summary


def peak_memory() -> str:
    """The most memory that this process has held, as text."""
    try:
        import resource
    except ImportError:  # Windows
        return "not known here"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{peak / (1 << 30 if sys.platform == 'darwin' else 1 << 20):.2f} GB"
