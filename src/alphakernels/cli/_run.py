"""What demo and train share: fit with a record of both phases, scores, files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import typer

from alphakernels.data import PanelDataset
from alphakernels.estimators import TabNetModel
from alphakernels.plotting import training_report
from alphakernels.training import Callback, TrainingState, ic_by_day, ic_summary

MODELS = {"tabnet": TabNetModel}
PHASES = {"pretrain": "pretraining", "finetune": "fine-tuning"}


def model_class(name: str) -> type[TabNetModel]:
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
    """Epoch losses of both phases as text."""
    lines = [f"{'phase':12s} {'epoch':>5s} {'train':>12s} {'valid':>12s}"]
    for phase, history in histories.items():
        for record in history:
            lines.append(f"{phase:12s} {record['epoch'] + 1:5d} {record['train']:12.6f} {record['valid']:12.6f}")
    return "\n".join(lines)


def finish(model: TabNetModel, dataset: PanelDataset, record: Record, out: Path, title: str) -> dict[str, float]:
    """Scores the test segment, prints the tables, writes predictions.csv, model.safetensors and report.png to `out`."""
    prediction = model.predict(dataset, "test")
    segment = dataset.segment("test")
    label = pd.Series(segment.y, index=segment.index, name="label")
    summary = ic_summary(prediction, label)
    importances = model.feature_importances(dataset, "test")
    prediction.to_frame().assign(label=label).to_csv(out / "predictions.csv")
    model.save(out / "model.safetensors")
    figure = training_report(record.histories, ic_by_day(prediction, label), importances, title)
    figure.savefig(out / "report.png", dpi=110)
    typer.echo(losses_table(record.histories))
    typer.echo("")
    ic, rank_ic = (f"{summary[name]:+.4f} (ICIR {summary[name + 'ir']:+.3f})" for name in ("ic", "rank_ic"))
    typer.echo(f"test IC {ic}   Rank IC {rank_ic}")
    return summary
