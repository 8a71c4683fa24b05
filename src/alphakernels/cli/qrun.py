"""Qlib's own qrun, with our classes in the place of Qlib's."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import typer


def run(config: Path, experiment_name: str, uri_folder: str, threads: int | None) -> None:
    """Patches and runs; see `alphakernels qrun --help`."""
    if not config.is_file():
        raise FileNotFoundError(f"{config}: no such file")
    # Qlib keeps its records in files, which MLflow 3 refuses unless it is told.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    if threads is not None:
        torch.set_num_threads(threads)
    from alphakernels import qlib as bridge

    for path in bridge.patch():
        typer.echo(f"patched    {path}")
    from qlib.cli.run import workflow

    workflow(str(config), experiment_name=experiment_name, uri_folder=uri_folder)
