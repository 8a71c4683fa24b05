"""GATs and HIST: a day at a time, several a step, pretrained bases, days of one stock, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from alphakernels.estimators import GATsModel, GRUModel, HISTModel, LSTMModel
from alphakernels.training import CheckpointError, ic_by_day

SMALL = {"hidden_size": 8, "num_layers": 1, "n_epochs": 2, "lr": 0.01, "seed": 3, "GPU": -1, "progress": False}


@pytest.mark.parametrize("base_model", ["GRU", "LSTM"])
def test_predicts_day_by_day(style, base_model, panels):
    dataset = style()
    model = GATsModel(d_feat=None, base_model=base_model, **SMALL).fit(dataset)
    assert model.d_feat_ == panels.FIELDS
    segment, scores = dataset.segment("test"), model.predict(dataset)
    assert scores.index.equals(segment.index)
    day = np.asarray(segment.index.get_level_values(0))
    for one in np.unique(day)[:3]:
        rows = np.flatnonzero(day == one)
        with torch.inference_mode():
            expected = model.module_(torch.as_tensor(segment.x[rows])).numpy()
        np.testing.assert_allclose(scores.to_numpy()[rows], expected, rtol=1e-5, atol=1e-6)


def test_a_days_scores_do_not_depend_on_other_days(style):
    dataset = style()
    model = GATsModel(d_feat=None, **SMALL).fit(dataset)
    day = dataset.segment("test").index[0][0]
    alone, among = model.predict(dataset, (day, day)), model.predict(dataset)
    pd.testing.assert_series_equal(alone, among.loc[[day]], rtol=1e-5)


@pytest.mark.parametrize("days", [1, 4])
def test_losses_are_means_over_days(style, days):
    dataset = style(missing=0.3)
    model = GATsModel(d_feat=None, days_per_step=days, **SMALL).fit(dataset)
    label = dataset.segment("valid").label_series()
    best = int(np.argmax(model.evals_result_["valid"]))
    by_day = (model.predict(dataset, "valid") - label).pow(2).groupby(level=0).mean()
    assert -model.evals_result_["valid"][best] == pytest.approx(by_day.mean(), rel=1e-5)


def test_metric_ic(style):
    dataset = style()
    model = GATsModel(d_feat=None, metric="ic", **SMALL).fit(dataset)
    best = int(np.argmax(model.evals_result_["valid"]))
    ic = ic_by_day(model.predict(dataset, "valid"), dataset.segment("valid").label_series()).mean()
    assert model.evals_result_["valid"][best] == pytest.approx(ic, abs=1e-5)


@pytest.mark.parametrize("days", [1, 3])
def test_saved_loaded_repeated(style, days, tmp_path):
    dataset = style()
    options = {"d_feat": None, "days_per_step": days, **SMALL}
    model = GATsModel(**options).fit(dataset, save_path=tmp_path / "m")
    pd.testing.assert_series_equal(GATsModel.load(tmp_path / "m").predict(dataset), model.predict(dataset), check_exact=True)
    pd.testing.assert_series_equal(GATsModel(**options).fit(dataset).predict(dataset), model.predict(dataset), check_exact=True)


def test_a_pretrained_base(style, tmp_path):
    dataset = style()
    base = GRUModel(d_feat=None, batch_size=64, **SMALL).fit(dataset, save_path=tmp_path / "base.safetensors")
    torch.save(base.module_.state_dict(), tmp_path / "base.pkl")
    still = {**SMALL, "n_epochs": 0}
    for file in ("base.safetensors", "base.pkl"):
        model = GATsModel(d_feat=None, model_path=tmp_path / file, **still).fit(dataset)
        for name, tensor in base.module_.state_dict().items():
            assert torch.equal(model.module_.state_dict()[name], tensor)  # the stack, and the layer of the same name on top
    assert not torch.equal(GATsModel(d_feat=None, **still).fit(dataset).module_.fc_out.weight, base.module_.fc_out.weight)
    with pytest.raises(CheckpointError, match=r"expected rnn.weight_ih_l0 of shape \(48, 3\), got \(24, 3\); pretrain a GRU"):
        GATsModel(d_feat=None, model_path=tmp_path / "base.pkl", **{**still, "hidden_size": 16}).fit(dataset)
    torch.save({"other": torch.zeros(2)}, tmp_path / "other.pkl")
    with pytest.raises(CheckpointError, match=r"expected the weights of a GRU, rnn.\*, got other"):
        GATsModel(d_feat=None, model_path=tmp_path / "other.pkl", **still).fit(dataset)
    with pytest.raises(FileNotFoundError):
        GATsModel(d_feat=None, model_path=tmp_path / "none.pkl", **still).fit(dataset)


def test_a_day_of_one_stock(panels):
    table = panels.frame(missing=0.0)
    day = table.index.get_level_values(0)
    table = table[~((day == "2020-02-03") | (day == "2020-03-03")) | (table.index.get_level_values(1) == "S04")]
    scores = GATsModel(d_feat=None, **SMALL).fit(panels.rows(table)).predict(panels.rows(table))
    assert np.isfinite(scores).all() and len(scores.loc["2020-03-03"]) == 1


def test_an_mlp_on_tabular_features(panels):
    dataset = panels.rows()
    model = GATsModel(d_feat=None, base_model="MLP", **SMALL).fit(dataset)
    assert model.d_feat_ == panels.FIELDS * panels.LAGS
    assert len(model.predict(dataset)) == len(dataset.segment("test"))


def test_what_is_refused():
    with pytest.raises(ValueError, match="base_model must be one of 'GRU', 'LSTM', 'MLP', got 'RNN'"):
        GATsModel(base_model="RNN")
    with pytest.raises(ValueError, match="days_per_step must be an integer of at least 1, got 0"):
        GATsModel(days_per_step=0)


CONCEPTS = {f"S{i:02d}": ["even" if i % 2 == 0 else "odd", f"third{i % 3}"] for i in range(9)}  # S09 and S10 have none


def test_hist(style, tmp_path):
    dataset = style()
    model = HISTModel(d_feat=None, stock2concept=CONCEPTS, **SMALL).fit(dataset, save_path=tmp_path / "m")
    scores = model.predict(dataset)
    assert scores.index.equals(dataset.segment("test").index) and np.isfinite(scores).all()
    loaded = HISTModel.load(tmp_path / "m")
    pd.testing.assert_series_equal(loaded.predict(dataset), scores, check_exact=True)
    day = dataset.segment("test").index[0][0]
    pd.testing.assert_series_equal(model.predict(dataset, (day, day)), scores.loc[[day]], rtol=1e-5)
    frame = pd.DataFrame({name: {s: float(name in of) for s, of in CONCEPTS.items()} for name in ("even", "odd", "third0")})
    same = HISTModel(d_feat=None, stock2concept=frame.assign(nobody=0.0), metric="ic", **SMALL).fit(dataset)
    assert same.evals_result_["valid"][0] <= 1
    several = HISTModel(d_feat=None, stock2concept=CONCEPTS, days_per_step=3, **SMALL).fit(dataset)
    assert np.isfinite(several.predict(dataset)).all()


def test_hist_with_an_mlp_a_base_of_another_size_and_days_of_one_stock(panels, tmp_path):
    """What Qlib's fails on, together: tabular features, stocks without a concept, a day on which only such a one trades."""
    table = panels.frame(missing=0.0)
    day = table.index.get_level_values(0)
    table = table[~((day == "2020-02-03") | (day == "2020-03-03")) | (table.index.get_level_values(1) == "S10")]
    dataset = panels.rows(table)
    model = HISTModel(d_feat=None, base_model="MLP", stock2concept=CONCEPTS, **SMALL).fit(dataset)
    scores = model.predict(dataset)
    assert np.isfinite(scores).all() and len(scores.loc["2020-03-03"]) == 1
    wide = {**SMALL, "hidden_size": SMALL["hidden_size"] + 5}
    base = LSTMModel(d_feat=None, batch_size=64, **wide).fit(dataset, save_path=tmp_path / "base.safetensors")
    options = {"d_feat": None, "base_model": "LSTM", "stock2concept": CONCEPTS, **{**wide, "n_epochs": 0}}
    model = HISTModel(model_path=tmp_path / "base.safetensors", **options).fit(dataset)
    assert torch.equal(model.module_.rnn.weight_hh_l0, base.module_.rnn.weight_hh_l0)
    assert not torch.equal(HISTModel(**options).fit(dataset).module_.rnn.weight_hh_l0, base.module_.rnn.weight_hh_l0)


def test_hist_resumes_only_with_the_same_concepts(panels, tmp_path):
    options = {"d_feat": None, **SMALL}
    first = HISTModel(stock2concept=CONCEPTS, **options).fit(panels.rows(), checkpoint_dir=tmp_path)
    again = HISTModel(stock2concept=CONCEPTS, **options).fit(panels.rows(), checkpoint_dir=tmp_path, resume=True)
    pd.testing.assert_series_equal(again.predict(panels.rows()), first.predict(panels.rows()), check_exact=True)
    with pytest.raises(CheckpointError, match="concepts: the checkpoint has '9 stocks, 5 concepts"):
        HISTModel(stock2concept={"S01": "even"}, **options).fit(panels.rows(), checkpoint_dir=tmp_path, resume=True)
    with pytest.raises(ValueError, match="stock2concept must say which stocks belong to which concepts"):
        HISTModel(**options).fit(panels.rows())
