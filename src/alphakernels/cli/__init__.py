"""The command line: doctor, demo, train, predict. A user's mistake is one line on standard error and exit code 2."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

# What `train --config` takes; the README shows it too.
CONFIG = """\
data:
  label: my_label            # a column; left out: the forward return of close
  features: ["a", "b"]       # left out: all others, or the prices' windows
  step_len: 20               # windows of so many days; not for tabnet
  segments:                  # left out: 70 %, 15 % and 15 % of the days
    train: ["2010", "2016"]
    valid: ["2017", "2018"]
    test: ["2019", null]
model:                       # the estimator's arguments
  n_epochs: 10
  batch_size: 2048
"""

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Compiled kernels for the deep models of quantitative research.")

Model = Annotated[str, typer.Option(help="Which model: tabnet, alstm, lstm, gru, ...; a wrong name lists them all.")]
Threads = Annotated[int | None, typer.Option(min=1, help="torch threads; by default torch's own choice.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]


@app.command()
def doctor() -> None:
    """Versions, processor, devices, and which kernel runs each op where, with the reason wherever the reference runs."""
    from .doctor import report

    typer.echo(report())


@app.command()
def demo(
    model: Model = "tabnet",
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("alphakernels-demo"),
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs; each demo has its own default.")] = None,
    pretrain_epochs: Annotated[int, typer.Option(min=1, help="Epochs of TabNet's pretraining.")] = 2,
    start: Annotated[str | None, typer.Option(help="First day used of the sample, 1990 at the earliest.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Rows a step, of models that train on rows.")] = None,
    stocks: Annotated[int, typer.Option(min=10, help="Size of gats' simulated market.")] = 4000,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Trains a model on the bundled real market data and says how it went: losses, IC, speed-up."""
    from .demo import run

    run(
        model,
        out,
        epochs=epochs,
        pretrain_epochs=pretrain_epochs,
        start=start,
        batch_size=batch_size,
        stocks=stocks,
        threads=threads,
        quiet=quiet,
    )


@app.command(
    help="Trains a model on a table of your own; writes predictions, model and report.\n\n"
    "The label is the forward return of close, unless --config names another. It takes a workflow of Qlib, or, for example:\n\n"
    "\b\n" + CONFIG
)
def train(
    data: Annotated[Path, typer.Option(help="CSV or Parquet, long (date, instrument, columns) or wide (date, one column each).")],
    model: Model = "tabnet",
    config: Annotated[Path | None, typer.Option(help="YAML with `data:` and `model:`, see above, or a workflow of Qlib.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("alphakernels-run"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    from .train import run

    run(data, model, config, out, resume=resume, threads=threads, quiet=quiet)


@app.command()
def qrun(
    config: Annotated[Path, typer.Argument(help="A workflow of Qlib, as its own qrun takes it.")],
    experiment_name: Annotated[str, typer.Option(help="Experiment that it is recorded under, unless the workflow says.")] = "workflow",
    uri_folder: Annotated[str, typer.Option(help="Folder of the records.")] = "mlruns",
    threads: Threads = None,
) -> None:
    """Qlib's qrun with its PyTorch models answered by ours; the workflow stays as it is. Needs Qlib."""
    from .qrun import run

    run(config, experiment_name, uri_folder, threads)


def main() -> None:
    """Entry point of `alphakernels` and `python -m alphakernels`."""
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"alphakernels: {error}", err=True)
        sys.exit(2)
