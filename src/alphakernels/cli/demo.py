"""The main job: a model trained on the bundled real sample, with everything a first look needs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import typer

from alphakernels import use_backend
from alphakernels.data import SP500_SECTORS, Batch, PanelDataset, sample_panel
from alphakernels.estimators import Estimator

from ._run import Record, finish, model_class, peak_memory
from .market import market_story

ROUNDS = 5


@dataclass(frozen=True)
class Demo:
    """How a model is shown: its title, the sample's windows and first day, and its hyper-parameters."""

    title: str
    lags: int
    start: str
    options: Mapping[str, Any] = field(default_factory=dict)
    before: Callable[..., None] | None = None


RECURRENT = {"d_feat": None, "batch_size": 2000, "n_epochs": 3, "lr": 3e-3, "hidden_size": 32, "seed": 0}
ENCODER = {"d_feat": None, "batch_size": 1024, "n_epochs": 3, "lr": 5e-4, "d_model": 32, "seed": 0}
GRAPH = {"d_feat": None, "n_epochs": 3, "lr": 2e-3, "hidden_size": 32, "days_per_step": 8, "seed": 0}
DEMOS = {
    "tabnet": Demo("TabNet", 60, "2000", {"d_feat": None, "batch_size": 4096, "vbs": 2048, "n_epochs": 4, "lr": 5e-3}),
    "alstm": Demo("ALSTM", 60, "2008", RECURRENT),
    "lstm": Demo("LSTM", 60, "2008", RECURRENT),
    "gru": Demo("GRU", 60, "2008", RECURRENT),
    "localformer": Demo("LocalFormer", 20, "2008", ENCODER),
    "transformer": Demo("Transformer", 20, "2008", ENCODER),
    "sfm": Demo("SFM", 20, "2008", {**RECURRENT, "optimizer": "adam", "freq_dim": 8}),
    "gats": Demo("GATs", 20, "2008", GRAPH, before=market_story),
    "hist": Demo("HIST", 20, "2008", {**GRAPH, "stock2concept": SP500_SECTORS}),
}


def step_times(model: Estimator, batch: Batch) -> dict[str, float]:
    """Median milliseconds of a training step, compiled and on the reference, taking turns on the same batch."""
    y = torch.zeros(len(batch.x))
    steps = {}
    for backend in ("auto", "reference"):
        torch.manual_seed(0)
        network = model._network(model._n_features).train()
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

        def step(network=network, optimizer=optimizer, backend=backend) -> None:
            with use_backend(backend):
                optimizer.zero_grad()
                (model._scores(network, batch) - y).square().mean().backward()
                optimizer.step()

        steps[backend] = step
    times: dict[str, list[float]] = {backend: [] for backend in steps}
    for round_ in range(ROUNDS + 1):
        for backend, step in steps.items():
            begin = time.perf_counter()
            step()
            if round_:  # the first warms up
                times[backend].append(time.perf_counter() - begin)
    return {backend: statistics.median(t) * 1e3 for backend, t in times.items()}


def run(
    model: str,
    out: Path,
    *,
    epochs: int | None,
    pretrain_epochs: int,
    start: str | None,
    batch_size: int | None,
    stocks: int,
    threads: int | None,
    quiet: bool,
) -> None:
    """Trains, prints, writes; see `alphakernels demo --help`."""
    estimator, demo = model_class(model), DEMOS[model]
    if threads is not None:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    options = {**demo.options, "progress": not quiet}
    if epochs is not None:
        options["n_epochs"] = epochs
    if model == "tabnet":
        options["pretrain_n_epochs"] = pretrain_epochs
    if batch_size is not None and "batch_size" in options:
        options["batch_size"] = batch_size
        if "vbs" in options:
            options["vbs"] = max(2, batch_size // 2)
    if demo.before is not None:
        demo.before(estimator, options, stocks, epochs)
    dataset: PanelDataset = sample_panel(lags=demo.lags, start=start or demo.start)
    typer.echo(f"data       {dataset}")
    network = estimator(**options)
    record = Record()
    network.fit(dataset, callbacks=[record])
    first, last = dataset.segments["test"][0], dataset.days[-1]
    finish(network, dataset, record, out, f"{demo.title} on 20 US stocks, test {first} to {last:%Y-%m-%d}")
    typer.echo("A few epochs on 20 stocks: an IC this size is noise. The sample shows that the machinery works, not that a model earns.")
    with torch.random.fork_rng(devices=[]):
        batch = next(iter(network._prediction_batches(network._rows_to_predict(dataset, "train"), torch.device("cpu"))))
        times = step_times(network, batch)
    ratio = times["reference"] / times["auto"]
    typer.echo(
        f"training step, {len(batch.x)} rows, {torch.get_num_threads()} threads: compiled {times['auto']:.1f} ms, "
        f"reference {times['reference']:.1f} ms: {ratio:.2f}x"
    )
    typer.echo(
        f"written    {out}/predictions.csv, model.safetensors, report.png   "
        f"({time.perf_counter() - begin:.0f} s, peak memory {peak_memory()})"
    )
