"""A simulated market in Qlib's binary format, and tasks over it, for running Qlib's own workflow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from alphakernels.data import simulate_market

FIELDS = ("open", "high", "low", "close", "volume")
LAGS = 8
# Qlib's DNNModelPytorch wants 50 instruments a day.
INSTRUMENTS, DAYS = 52, 90


def write(folder: Path, instruments: int = INSTRUMENTS, days: int = DAYS, seed: int = 0) -> list[str]:
    """Writes a simulated market; see `write_frame`."""
    return write_frame(folder, simulate_market(instruments, days, seed=seed).frame[list(FIELDS)])


def names(frame: pd.DataFrame) -> list[str]:
    """What a frame's instruments are called in Qlib's data."""
    return [f"S{i:03d}" for i in range(len(frame.index.levels[1]))]


def write_frame(folder: Path, frame: pd.DataFrame) -> list[str]:
    """Writes bars by (datetime, instrument) as Qlib's scripts/dump_bin.py does: calendar, instruments, one file of float32 a field.
    Returns the days."""
    dates = frame.index.levels[0]
    calendar = [f"{day:%Y-%m-%d}" for day in dates]
    for part in ("calendars", "instruments", "features"):
        (folder / part).mkdir(parents=True)
    (folder / "calendars/day.txt").write_text("".join(f"{day}\n" for day in calendar))
    lines = []
    for name, instrument in zip(names(frame), frame.index.levels[1], strict=True):
        rows = frame.xs(instrument, level="instrument")
        start = dates.get_loc(rows.index[0])
        rows = rows.reindex(dates[start:])
        lines.append(f"{name}\t{calendar[start]}\t{calendar[-1]}\n")
        into = folder / "features" / name.lower()
        into.mkdir()
        for field in frame.columns:
            np.r_[start, rows[field].to_numpy()].astype("<f4").tofile(into / f"{field}.day.bin")
    (folder / "instruments/all.txt").write_text("".join(lines))
    return calendar


def handler_config(calendar: list[str], segments: dict[str, tuple[str, str]]) -> dict:
    """A handler with windows of every field over the latest close (feature-major, as Alpha360), processed as in Qlib's examples."""
    names = [(f"Ref(${field}, {lag}) / ${'volume' if field == 'volume' else 'close'}", f"{field.upper()}{lag}") for field in FIELDS
             for lag in range(LAGS - 1, -1, -1)]  # fmt: skip
    expressions, columns = map(list, zip(*names, strict=True))
    normalise = {"fields_group": "feature", "fit_start_time": segments["train"][0], "fit_end_time": segments["train"][1]}
    return {
        "class": "DataHandlerLP",
        "module_path": "qlib.data.dataset.handler",
        "kwargs": {
            "instruments": "all",
            "start_time": calendar[0],
            "end_time": calendar[-1],
            "data_loader": {
                "class": "QlibDataLoader",
                "kwargs": {
                    "config": {
                        "feature": (expressions, columns),
                        "label": (["Ref($close, -2) / Ref($close, -1) - 1"], ["LABEL0"]),
                    }
                },
            },
            "infer_processors": [
                {"class": "RobustZScoreNorm", "kwargs": {**normalise, "clip_outlier": True}},
                {"class": "Fillna", "kwargs": {"fields_group": "feature"}},
            ],
            "learn_processors": [{"class": "DropnaLabel"}, {"class": "CSRankNorm", "kwargs": {"fields_group": "label"}}],
        },
    }


def segments_of(calendar: list[str]) -> dict[str, tuple[str, str]]:
    return {"train": (calendar[12], calendar[55]), "valid": (calendar[56], calendar[69]), "test": (calendar[70], calendar[86])}


def task(module: str, name: str, kwargs: dict, handler: object, segments: dict, step_len: int | None = None) -> dict:
    """A task for qlib.model.trainer.task_train, with predictions and their analysis."""
    dataset = {"handler": handler, "segments": segments, **({"step_len": step_len} if step_len else {})}
    records = "qlib.workflow.record_temp"
    return {
        "model": {"class": name, "module_path": module, "kwargs": kwargs},
        "dataset": {"class": "TSDatasetH" if step_len else "DatasetH", "module_path": "qlib.data.dataset", "kwargs": dataset},
        "record": [
            {"class": "SignalRecord", "module_path": records, "kwargs": {"model": "<MODEL>", "dataset": "<DATASET>"}},
            {"class": "SigAnaRecord", "module_path": records, "kwargs": {"ana_long_short": False, "ann_scaler": 252}},
        ],
    }
