"""Training on a user's own table, from a YAML file, `alphakernels.cli.CONFIG`, or from a Qlib workflow: see `_qlib_config`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import typer
import yaml

from alphakernels._near import hint
from alphakernels.data import panel_from_table, read_table

from ._qlib_config import is_qlib, plan
from ._run import Record, finish, model_class


class _Yaml(yaml.SafeLoader):
    """PyYAML takes 1e-3 for text; in YAML 1.2, which Qlib reads its workflows by, it is a number."""


_Yaml.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def _known(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for key in given:
        if key not in known:
            raise ValueError(f"{what}: unknown key {key!r}{hint(str(key), known)}")


def _read_yaml(path: Path) -> Any:
    """Raises ValueError or FileNotFoundError for a file that cannot be read as YAML."""
    if not path.is_file():
        raise FileNotFoundError(f"--config {path}: no such file")
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Yaml) or {}  # a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path}: cannot be read as YAML: {' '.join(str(error).split())}") from None


def read_config(path: Path | None, model_arguments: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `data` and `model` parts of a YAML file, each {} where missing.

    Raises:
        ValueError: not YAML, not a mapping, or an unknown key (the nearest known one is named).
    """
    if path is None:
        return {}, {}
    content = _read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"--config {path}: must be a mapping with data: and model:, got {type(content).__name__}")
    _known(f"--config {path}", content, ("data", "model"))
    parts = {name: content.get(name) or {} for name in ("data", "model")}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise ValueError(f"--config {path}: {name} must be a mapping, got {type(part).__name__}")
    table_arguments = [name for name in inspect.signature(panel_from_table).parameters if name != "table"] + ["step_len"]
    _known(f"--config {path}, data", parts["data"], table_arguments)
    _known(f"--config {path}, model", parts["model"], model_arguments)
    return parts["data"], parts["model"]


def run(data: Path, model: str, config: Path | None, out: Path, *, resume: bool, threads: int | None, quiet: bool) -> None:
    """Reads, trains, writes; see `alphakernels train --help`."""
    workflow = None if config is None else _read_yaml(config)
    if is_qlib(workflow):
        asked = plan(workflow, f"--config {config}")
        estimator, model_options, table_options, step_len = asked.estimator, asked.arguments, asked.table, asked.step_len
        arguments = list(inspect.signature(estimator).parameters)
    else:
        estimator = model_class(model)
        arguments = list(inspect.signature(estimator).parameters)
        table_options, model_options = read_config(config, arguments)
        step_len = table_options.pop("step_len", None)
    if threads is not None:
        torch.set_num_threads(threads)
    dataset = panel_from_table(read_table(data), **table_options)
    if step_len is not None:
        dataset = dataset.windows(step_len)
    typer.echo(f"data       {dataset}")
    for segment in ("train", "valid", "test"):
        dataset.segment(segment)
    defaults: dict[str, Any] = {"progress": not quiet} | ({"d_feat": None} if "d_feat" in arguments else {})
    if "batch_size" in arguments:
        usual = inspect.signature(estimator).parameters["batch_size"].default
        defaults["batch_size"] = min(usual, max(2, len(dataset.segment("train"))))
    network = estimator(**{**defaults, **model_options})
    out.mkdir(parents=True, exist_ok=True)
    record = Record()
    network.fit(dataset, callbacks=[record], checkpoint_dir=out / "checkpoints", resume=resume)
    finish(network, dataset, record, out, f"{estimator.__name__} on {data.name}")
    typer.echo(f"written    {out}/predictions.csv, model.safetensors, report.png")
