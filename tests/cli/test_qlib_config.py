"""Qlib's workflows, run without Qlib, as far as they name what exists here."""

from __future__ import annotations

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from alphakernels.cli import app
from alphakernels.cli._qlib_config import plan
from alphakernels.data import panel_from_table, simulate_market
from alphakernels.estimators import DNNModelPytorch, GRUModel, LocalformerModel

WORKFLOW = """
qlib_init: {{provider_uri: "~/.qlib/qlib_data/cn_data", region: cn}}
market: &market csi300
data_handler_config: &data_handler_config
    start_time: 2008-01-01
    instruments: *market
    infer_processors:
        - {{class: RobustZScoreNorm, kwargs: {{fields_group: feature, clip_outlier: true}}}}
        - {{class: Fillna, kwargs: {{fields_group: feature}}}}
    learn_processors:
        - class: DropnaLabel
        - {{class: {rank}, kwargs: {{fields_group: label}}}}
    label: ["Ref($close, -2) / Ref($close, -1) - 1"]
task:
    model:
        class: {model}
        module_path: qlib.contrib.model.pytorch_gru
        kwargs: {{{kwargs}}}
    dataset:
        class: {dataset}
        module_path: qlib.data.dataset
        kwargs:
            handler: {{class: {handler}, module_path: qlib.contrib.data.handler, kwargs: *data_handler_config}}
            segments: {{train: [2010-01-01, 2010-07-30], valid: [2010-08-01, 2010-08-30], test: [2010-09-01, 2010-12-31]}}
    record: [{{class: SignalRecord}}]
"""
GRU = "d_feat: 6, hidden_size: 4, num_layers: 1, n_epochs: 1, batch_size: 200, GPU: -1, n_jobs: 3, seed: 0"


def workflow(model="GRU", kwargs=GRU, dataset="DatasetH", handler="Alpha360", rank="CSRankNorm"):
    return WORKFLOW.format(model=model, kwargs=kwargs, dataset=dataset, handler=handler, rank=rank)


def test_a_plan():
    asked = plan(yaml.safe_load(workflow(dataset="TSDatasetH")), "w.yaml")
    assert asked.estimator is GRUModel
    assert asked.arguments["hidden_size"] == 4
    assert asked.step_len == 30
    table = asked.table
    assert table["fields"] == ["close", "open", "high", "low", "vwap", "volume"] and table["lags"] == 60
    assert (table["delay"], table["horizon"]) == (1, 1)
    assert (table["feature_norm"], table["label_norm"]) == ("robust_zscore", "rank")
    other = yaml.safe_load(workflow(model="DNNModelPytorch", kwargs="max_steps: 3"))
    other["task"]["dataset"]["kwargs"]["handler"]["kwargs"]["label"] = [["Ref($close, -5)/$close - 1"], ["LABEL0"]]
    asked = plan(other, "w.yaml")
    assert asked.estimator is DNNModelPytorch
    assert (asked.table["delay"], asked.table["horizon"]) == (0, 5)


def test_it_trains(tmp_path):
    frame = simulate_market(8, 240, seed=1).frame
    if "vwap" not in frame:
        frame = frame.assign(vwap=frame[["high", "low", "close"]].mean(axis=1))
    frame.reset_index().to_csv(tmp_path / "prices.csv", index=False)
    (tmp_path / "workflow.yaml").write_text(workflow())
    arguments = ["train", "--data", str(tmp_path / "prices.csv"), "--config", str(tmp_path / "workflow.yaml")]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "run"), "--quiet"])
    assert result.exit_code == 0, (result.output, result.exception)
    predictions = pd.read_csv(tmp_path / "run" / "predictions.csv")
    assert predictions["score"].notna().all() and predictions["datetime"].min() >= "2010-09-01"
    assert GRUModel.load(tmp_path / "run" / "model.safetensors").hidden_size == 4


def alpha158(kwargs, columns=("RESI5", "WVMA5", "CORR10", "STD20", "KLEN", "VWAP0")):
    """As examples/benchmarks/Transformer/workflow_config_transformer_Alpha158.yaml has it."""
    content = yaml.safe_load(workflow("LocalformerModel", kwargs, dataset="TSDatasetH", handler="Alpha158"))
    dataset = content["task"]["dataset"]["kwargs"]
    dataset["step_len"] = 5
    processors = dataset["handler"]["kwargs"]["infer_processors"]
    processors.insert(0, {"class": "FilterCol", "kwargs": {"fields_group": "feature", "col_list": list(columns)}})
    return content


def test_alpha158_trains(tmp_path):
    frame = simulate_market(8, 200, seed=1).frame
    frame = frame.assign(vwap=frame[["high", "low", "close"]].mean(axis=1))
    frame.reset_index().to_csv(tmp_path / "prices.csv", index=False)
    content = alpha158("d_feat: 6, d_model: 8, n_epochs: 1, batch_size: 200, GPU: -1, n_jobs: 20, seed: 0")
    asked = plan(content, "w.yaml")
    assert asked.step_len == 5 and asked.table["alpha158"] and len(asked.table["features"]) == 6
    content["task"]["dataset"]["kwargs"]["segments"] = {
        "train": ["2010-03-01", "2010-07-30"], "valid": ["2010-08-01", "2010-08-30"], "test": ["2010-09-01", "2010-12-31"],
    }  # fmt: skip
    (tmp_path / "workflow.yaml").write_text(yaml.safe_dump(content))
    arguments = ["train", "--data", str(tmp_path / "prices.csv"), "--config", str(tmp_path / "workflow.yaml")]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "run"), "--quiet"])
    assert result.exit_code == 0, (result.output, result.exception)
    model = LocalformerModel.load(tmp_path / "run" / "model.safetensors")
    assert model.features_ == ["RESI5", "WVMA5", "CORR10", "STD20", "KLEN", "VWAP0"] and model.step_len_ == 5


def test_alpha158_with_an_unknown_column(tmp_path):
    frame = simulate_market(3, 70).frame
    asked = plan(alpha158("d_feat: 1", ["RESI7"]), "w.yaml")
    with pytest.raises(ValueError, match="alpha158: unknown feature 'RESI7'; did you mean 'RESI5'?"):
        panel_from_table(frame.assign(vwap=frame["close"]), **asked.table)


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        ({"model": "GRUU"}, ["model GRUU; did you mean 'GRU'?"]),
        ({"model": "LGBModel", "handler": "Alpha101"}, ["model LGBModel", "handler Alpha101; known: Alpha360, Alpha158"]),
        ({"dataset": "MTSDatasetH", "rank": "TanhProcess"}, ["dataset MTSDatasetH", "processor TanhProcess of label"]),
        ({"kwargs": "hidden_sise: 3"}, ["GRU: unknown argument 'hidden_sise'; did you mean 'hidden_size'?"]),
    ],
)
def test_what_does_not_exist_is_listed(options, messages):
    with pytest.raises(ValueError) as caught:
        plan(yaml.safe_load(workflow(**options)), "w.yaml")
    for message in ("w.yaml: ", *messages):
        assert message in str(caught.value)


def test_labels_and_sections_that_cannot_be_read():
    content = yaml.safe_load(workflow())
    content["task"]["dataset"]["kwargs"]["handler"]["kwargs"]["label"] = ["Mean($close, 5)"]
    with pytest.raises(ValueError, match=r"label Mean\(\$close, 5\); known: forward returns"):
        plan(content, "w.yaml")
    del content["task"]["model"]
    with pytest.raises(ValueError, match="task.model must be a mapping with class and kwargs"):
        plan(content, "w.yaml")
