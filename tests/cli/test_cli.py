"""The command line as a user meets it."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from alphakernels.cli import CONFIG, app
from alphakernels.cli.demo import DEMOS
from alphakernels.cli.train import read_config
from alphakernels.data import simulate_market
from alphakernels.estimators import ALSTMModel, GRUModel, LocalformerModel, TabNetModel
from alphakernels.ops._library import OPS

runner = CliRunner()
PNG = b"\x89PNG"


def test_doctor_says_what_runs_where():
    result = runner.invoke(app, ["doctor"])
    assert result.exit_code == 0
    for name in OPS:
        if not name.endswith("_backward"):
            assert name in result.output
    assert "torch" in result.output and "processor" in result.output
    # Each op is asked with a dtype that its kernel takes.
    assert "got float32" not in result.output


def test_demo_writes_what_it_says(tmp_path):
    out = tmp_path / "demo"
    arguments = ["demo", "--out", str(out), "--epochs", "1", "--pretrain-epochs", "1", "--start", "2013", "--batch-size", "1024"]
    result = runner.invoke(app, [*arguments, "--quiet"])
    assert result.exit_code == 0, result.output
    for part in ("pretraining", "fine-tuning", "test IC", "Rank IC", "compiled", "reference"):
        assert part in result.output
    predictions = pd.read_csv(out / "predictions.csv")
    assert list(predictions.columns) == ["datetime", "instrument", "score", "label"]
    assert predictions["score"].notna().all()
    assert (out / "report.png").read_bytes()[:4] == PNG
    assert TabNetModel.load(out / "model.safetensors").fitted


@pytest.mark.parametrize("model", ["alstm", "localformer"])
def test_demo_of_a_sequence_model(model, tmp_path, monkeypatch):
    small = {**DEMOS[model].options, **({"d_model": 8, "dim_feedforward": 32} if model == "localformer" else {})}
    monkeypatch.setitem(DEMOS, model, replace(DEMOS[model], lags=5, options=small))
    arguments = ["demo", "--model", model, "--out", str(tmp_path), "--epochs", "1", "--start", "2014-06", "--threads", "1", "--quiet"]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for part in ("training ", "test IC", "Rank IC", "compiled", "reference", "peak memory"):
        assert part in result.output
    assert (tmp_path / "report.png").read_bytes()[:4] == PNG
    assert {"alstm": ALSTMModel, "localformer": LocalformerModel}[model].load(tmp_path / "model.safetensors").d_feat_ == 1


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "prices.csv"
    simulate_market(10, 120, seed=1).frame.reset_index().to_csv(path, index=False)
    return path


def config(tmp_path, text: str):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return str(path)


SMALL = "data: {lags: 3}\nmodel: {n_epochs: 1, pretrain: false, batch_size: 256, vbs: 64, out_dim: 8}\n"


def test_the_configuration_that_help_and_readme_show(tmp_path):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert f"```yaml\n{CONFIG}```" in readme
    shown = [line.strip() for line in runner.invoke(app, ["train", "--help"], env={"COLUMNS": "80"}).output.splitlines()]
    assert [line for line in shown if line in map(str.strip, CONFIG.splitlines())] == [line.strip() for line in CONFIG.splitlines()]
    data, model = read_config(Path(config(tmp_path, CONFIG)), inspect.signature(GRUModel).parameters)
    assert data["label"] == "my_label" and data["features"] == ["a", "b"] and model == {"n_epochs": 10, "batch_size": 2048}


def test_numbers_with_an_exponent_are_numbers(tmp_path):
    path = Path(config(tmp_path, 'model: {lr: 1e-3, reg: 2E+1, dropout: 1.5e-1, optimizer: "1e-3", metric: 1e-3x, n_epochs: 10}'))
    _, model = read_config(path, inspect.signature(LocalformerModel).parameters)
    assert model == {"lr": 0.001, "reg": 20.0, "dropout": 0.15, "optimizer": "1e-3", "metric": "1e-3x", "n_epochs": 10}


def test_train_on_a_table(tmp_path, table):
    out = tmp_path / "run"
    arguments = ["train", "--data", str(table), "--config", config(tmp_path, SMALL), "--out", str(out), "--quiet"]
    done = subprocess.run([sys.executable, "-m", "alphakernels", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (out / "report.png").read_bytes()[:4] == PNG
    assert len(pd.read_csv(out / "predictions.csv")) > 0


@pytest.mark.parametrize("data", ["{lags: 3}", "{lags: 1, step_len: 4}"])
def test_train_a_sequence_model(tmp_path, table, data):
    text = f"data: {data}\nmodel: {{n_epochs: 1, hidden_size: 4, num_layers: 1}}\n"
    arguments = ["train", "--model", "gru", "--data", str(table), "--config", config(tmp_path, text), "--out", str(tmp_path / "run"), "--quiet"]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert GRUModel.load(tmp_path / "run" / "model.safetensors").d_feat_ == 6


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data", "none.csv"], "none.csv: no such file"),
        (["--data", "{table}", "--model", "gbdt"], "--model must be one of alstm, "),
        (["--data", "{table}", "--config", "{config:model: {n_epoch: 1}}"], "unknown key 'n_epoch'; did you mean 'n_epochs'?"),
        (["--data", "{table}", "--config", "{config:data: {segments: {train: [1980, 1981]}}}"], "segment 'train'"),
        (["--data", "{labels}"], "the table has my_label; name its label's column by label=, on the command line by --config"),
        (["--data", "{table}", "--config", "{config:[1, 2}"], "cannot be read as YAML"),
    ],
)
def test_mistakes_are_one_line(tmp_path, table, arguments, message):
    labels = tmp_path / "labels.csv"
    pd.read_csv(table)[["datetime", "instrument", "close"]].rename(columns={"close": "my_label"}).to_csv(labels, index=False)
    filled = []
    for argument in arguments:
        if argument.startswith("{config:"):
            argument = config(tmp_path, argument[len("{config:") : -1])
        filled.append(argument.replace("{table}", str(table)).replace("{labels}", str(labels)))
    command = [sys.executable, "-m", "alphakernels", "train", *filled, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
