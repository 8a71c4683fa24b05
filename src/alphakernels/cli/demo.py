"""The main job: TabNet trained on the bundled real sample, with everything a first look needs."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch
import typer

from alphakernels import use_backend
from alphakernels.data import PanelDataset, sample_panel
from alphakernels.models import TabNet

from ._run import Record, finish, model_class

ROUNDS = 5


def step_times(features: int, batch: int, vbs: int) -> dict[str, float]:
    """Median milliseconds of a TabNet training step, compiled and on the reference, taking turns on the same inputs."""
    x, y = torch.randn(batch, features), torch.randn(batch)
    priors = torch.ones_like(x)
    steps = {}
    for backend in ("auto", "reference"):
        torch.manual_seed(0)
        network = TabNet(features, 64, relax=1.3, vbs=vbs)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

        def step(network=network, optimizer=optimizer, backend=backend) -> None:
            with use_backend(backend):
                optimizer.zero_grad()
                (network(x, priors)[0].mean(1) - y).square().mean().backward()
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
    model: str, out: Path, *, epochs: int, pretrain_epochs: int, start: str, batch_size: int, threads: int | None, quiet: bool
) -> None:
    """Trains, prints, writes; see `alphakernels demo --help`."""
    estimator = model_class(model)
    if threads is not None:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    dataset: PanelDataset = sample_panel(start=start)
    typer.echo(f"data       {dataset}")
    vbs = max(2, batch_size // 2)
    network = estimator(
        d_feat=None, batch_size=batch_size, vbs=vbs, n_epochs=epochs, pretrain_n_epochs=pretrain_epochs, lr=5e-3, progress=not quiet
    )
    record = Record()
    network.fit(dataset, callbacks=[record])
    finish(network, dataset, record, out, f"TabNet on 20 US stocks, test {dataset.segments['test'][0]} to {dataset.days[-1]:%Y-%m-%d}")
    typer.echo("A few epochs on 20 stocks: an IC this size is noise. The sample shows that the machinery works, not that a model earns.")
    with torch.random.fork_rng(devices=[]):
        times = step_times(len(dataset.features), batch_size, vbs)
    ratio = times["reference"] / times["auto"]
    typer.echo(
        f"training step, {batch_size} rows, {torch.get_num_threads()} threads: compiled {times['auto']:.1f} ms, "
        f"reference {times['reference']:.1f} ms: {ratio:.2f}x"
    )
    typer.echo(f"written    {out}/predictions.csv, model.safetensors, report.png   ({time.perf_counter() - begin:.0f} s)")
