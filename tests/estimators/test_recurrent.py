"""GRU, LSTM and ALSTM: rows and windows, weights, metrics, predictions, attention, and what is refused."""

from __future__ import annotations

import inspect
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import alphakernels as ak
from alphakernels.cli.market import returns_panel
from alphakernels.data import simulate_market
from alphakernels.estimators import ALSTMModel, GRUModel, LSTMModel, SFMModel
from alphakernels.ops import _library
from alphakernels.training import Callback, CheckpointError, ic_by_day, ic_summary

MODELS = (GRUModel, LSTMModel, ALSTMModel)
SMALL = {"hidden_size": 8, "num_layers": 1, "batch_size": 64, "n_epochs": 2, "lr": 0.01, "seed": 3, "GPU": -1, "progress": False}


@pytest.mark.parametrize("model", MODELS)
def test_defaults_are_qlibs(model):
    expected = {
        "d_feat": 6, "hidden_size": 64, "num_layers": 2, "dropout": 0.0, "n_epochs": 200, "lr": 0.001, "metric": "",
        "batch_size": 2000, "early_stop": 20, "loss": "mse", "optimizer": "adam", "GPU": 0, "seed": None, "n_jobs": 10,
    }  # fmt: skip
    parameters = inspect.signature(model).parameters
    assert list(parameters)[: len(expected)] == list(expected)
    assert {name: parameters[name].default for name in expected} == expected


@pytest.mark.parametrize("model", MODELS)
def test_predicts_every_row_in_order(model, style, panels):
    dataset = style()
    fitted = model(d_feat=None, **SMALL).fit(dataset)
    assert fitted.d_feat_ == panels.FIELDS
    segment = dataset.segment("test")
    scores = fitted.predict(dataset)
    assert scores.index.equals(segment.index) and scores.dtype == np.float32 and scores.name == "score"
    whole = torch.as_tensor(segment.x[:])
    with torch.inference_mode():
        expected = fitted.module_(whole).numpy()
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
    one = segment.index[3][0]
    assert fitted.predict(dataset, (one, one)).index.equals(segment.index[segment.index.get_level_values(0) == one])
    assert [len(fitted.evals_result_[name]) for name in ("train", "valid")] == [2, 2]


def test_same_seed_same_fit_and_the_global_streams_are_left(style):
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    one, other = (ALSTMModel(d_feat=None, **SMALL).fit(style()).predict(style()) for _ in range(2))
    pd.testing.assert_series_equal(one, other, check_exact=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()
    unseeded = [ALSTMModel(d_feat=None, **{**SMALL, "seed": None, "n_epochs": 0}).fit(style()).predict(style()) for _ in range(2)]
    assert not unseeded[0].equals(unseeded[1])


@pytest.mark.skipif(sys.platform != "linux" or _library.compiled().problem is not None, reason="of the compiled library, on Linux")
@pytest.mark.parametrize("fails", [False, True])
def test_the_memory_of_a_step_is_given_back_after_a_fit(fails):
    """A step keeps [2, 40, 2500, 64] gates, 51 MB, which the next one gets."""
    kept = []

    class Look(Callback):
        def on_epoch_end(self, state):
            kept.append(ak.empty_cache())

        def on_batch_end(self, state):
            if fails and state.epoch == 1:
                raise KeyboardInterrupt

    x, y = np.random.default_rng(0).normal(size=(2500, 80)).astype(np.float32), np.random.default_rng(1).normal(size=2500)
    model = GRUModel(**{**SMALL, "d_feat": 2, "hidden_size": 16, "num_layers": 2, "batch_size": 2500})
    ak.empty_cache()
    if fails:
        with pytest.raises(KeyboardInterrupt):
            model.fit(x, y, callbacks=[Look()])
    else:
        model.fit(x, y, callbacks=[Look()])
    assert kept and min(kept) >= 2 * 40 * 2500 * 64 * 4
    assert ak.empty_cache() == 0


def test_learns(style):
    dataset = style(missing=0.0)
    model = GRUModel(d_feat=None, **{**SMALL, "n_epochs": 25, "lr": 0.03}).fit(dataset)
    assert ic_by_day(model.predict(dataset), dataset.segment("test").label_series()).mean() > 0.7
    assert model.evals_result_["valid"][-1] > model.evals_result_["valid"][0]


def test_finds_most_of_a_planted_temporal_signal():
    """Of what no model can beat, the planted signal's own IC, at least 0.8."""
    market = simulate_market(200, 200, seed=1, signal=0.4)
    dataset = returns_panel(market, 21)  # the signal is a function of 21 closes
    options = {"d_feat": None, "hidden_size": 16, "num_layers": 1, "n_epochs": 4, "lr": 4e-3, "batch_size": 500, "seed": 0}
    scores = ALSTMModel(**options, progress=False).fit(dataset).predict(dataset)
    planted = market.signal.loc[scores.index]
    found, best = (ic_summary(s, market.forward_return)["ic"] for s in (scores, planted))
    assert best > 0.3
    assert found > 0.8 * best


def test_saved_and_loaded(tmp_path, style):
    dataset = style()
    model = ALSTMModel(d_feat=None, **SMALL).fit(dataset, save_path=tmp_path / "m")
    loaded = ALSTMModel.load(tmp_path / "m")
    pd.testing.assert_series_equal(loaded.predict(dataset), model.predict(dataset), check_exact=True)
    assert (loaded.d_feat_, loaded.step_len_) == (model.d_feat_, model.step_len_)


def test_resumed_is_the_whole_fit(tmp_path, style):
    options = {**SMALL, "n_epochs": 4}
    whole = LSTMModel(d_feat=None, **options).fit(style())

    class Stop(Exception):
        pass

    class Interrupt(Callback):
        def on_batch_end(self, state):
            if state.epoch == 2:
                raise Stop

    with pytest.raises(Stop):
        LSTMModel(d_feat=None, **options).fit(style(), checkpoint_dir=tmp_path, callbacks=[Interrupt()])
    resumed = LSTMModel(d_feat=None, **options).fit(style(), checkpoint_dir=tmp_path, resume=True)
    pd.testing.assert_series_equal(resumed.predict(style()), whole.predict(style()), check_exact=True)
    assert resumed.evals_result_ == whole.evals_result_
    with pytest.raises(CheckpointError, match="train data"):
        LSTMModel(d_feat=None, **options).fit(style(seed=1), checkpoint_dir=tmp_path, resume=True)


def test_weights_of_rows(style, panels):
    dataset = style()
    chosen = dataset.segment("train").index.get_level_values(1) == "S03"

    def only_one(segment):
        assert segment.index.equals(dataset.segment("train").index)
        return pd.Series(chosen.astype(float), index=segment.index)[::-1]

    class Reweighter:
        def reweight(self, segment):
            return chosen.astype(np.float64)

    options = {**SMALL, "n_epochs": 1, "batch_size": 10_000, "optimizer": "gd"}
    weighted = [LSTMModel(d_feat=None, **options).fit(dataset, reweighter=r) for r in (only_one, Reweighter())]
    pd.testing.assert_series_equal(weighted[0].predict(dataset), weighted[1].predict(dataset), check_exact=True)
    # One step on all rows with these weights is, but for the factor of the mean, one on the chosen rows alone.
    segment = dataset.segment("train")
    torch.manual_seed(options["seed"])
    network = LSTMModel._network_class(panels.FIELDS, 8, 1, 0.0)
    loss = (network(torch.as_tensor(segment.x[:]))[chosen] - torch.as_tensor(segment.y)[chosen]).square().sum() / len(chosen)
    loss.backward()
    for name, p in network.named_parameters():
        got = weighted[0].module_.state_dict()[name]
        torch.testing.assert_close(got, p.detach() - options["lr"] * p.grad, rtol=1e-4, atol=1e-7)
    for bad, error in ((lambda s: np.ones(3), "finite weights >= 0, one a row"), (lambda s: -np.ones(len(s)), "finite weights")):
        with pytest.raises(ValueError, match=error):
            LSTMModel(d_feat=None, **SMALL).fit(dataset, reweighter=bad)
    with pytest.raises(TypeError, match="reweighter must be a function"):
        LSTMModel(d_feat=None, **SMALL).fit(dataset, reweighter=3)


def test_metric_ic_is_the_mean_daily_correlation(style):
    dataset = style()
    model = GRUModel(d_feat=None, **{**SMALL, "metric": "ic", "n_epochs": 3, "batch_size": 30}).fit(dataset)
    best = int(np.argmax(model.evals_result_["valid"]))
    ic = ic_by_day(model.predict(dataset, "valid"), dataset.segment("valid").label_series()).mean()
    assert model.evals_result_["valid"][best] == pytest.approx(ic, abs=1e-5)


def test_attention_sums_to_one(panels):
    for dataset in (panels.rows(), panels.series()):
        model = ALSTMModel(d_feat=None, **SMALL).fit(dataset)
        weights = model.attention(dataset)
        assert weights.shape == (len(dataset.segment("test")), panels.LAGS)
        assert list(weights.columns) == list(range(panels.LAGS - 1, -1, -1))
        assert weights.index.equals(dataset.segment("test").index)
        np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)


def test_rows_without_label(panels):
    table = panels.frame()
    gaps = np.random.default_rng(0).random(len(table)) < 0.3
    table.loc[gaps, "label"] = np.nan
    for model in (GRUModel, LSTMModel):
        fitted = model(d_feat=None, **SMALL).fit(panels.rows(table))
        assert np.isfinite(fitted.predict(panels.rows(table))).all()
    # Qlib's GRU leaves them out of its batches: as if the rows were not there.
    without = table[~gaps]
    pd.testing.assert_series_equal(
        GRUModel(d_feat=None, **SMALL).fit(panels.rows(table)).predict(panels.rows()),
        GRUModel(d_feat=None, **SMALL).fit(panels.rows(without)).predict(panels.rows()),
        check_exact=True,
    )


def test_without_validation_the_last_weights_are_kept(panels):
    dataset = panels.rows().with_segments(train=panels.SEGMENTS["train"], test=panels.SEGMENTS["test"])
    dataset.segments.pop("valid", None)
    model = GRUModel(d_feat=None, **SMALL).fit(dataset)
    assert list(model.evals_result_) == ["train"]
    assert len(model.evals_result_["train"]) == 2


def test_missing_features(panels):
    table = panels.frame()
    table.iloc[::17, 2] = np.nan
    table.iloc[::13, 17] = np.nan  # VOLUME0
    for style in (panels.rows, panels.series):
        with pytest.raises(ValueError, match='in . of .* columns of segment .train.*missing="fill"'):
            GRUModel(d_feat=None, **SMALL).fit(style(table))
        filled = GRUModel(d_feat=None, missing="fill", **SMALL).fit(style(table)).predict(style(table))
        assert filled.equals(GRUModel(d_feat=None, **SMALL).fit(style(table.fillna(0))).predict(style(table.fillna(0))))


def test_what_is_refused(panels):
    with pytest.raises(ValueError, match="rows must hold d_feat = 5 features .* 18 columns are no multiple"):
        GRUModel(d_feat=5, **SMALL).fit(panels.rows())
    with pytest.raises(ValueError, match="d_feat must be the dataset's number of features, 3, got 6"):
        GRUModel(**SMALL).fit(panels.series())
    with pytest.raises(ValueError, match="d_feat=None needs windows, or rows whose columns are named by field and lag"):
        GRUModel(d_feat=None, **SMALL).fit(panels.rows(panels.frame().rename(columns={"OPEN3": "open"})))
    fitted = GRUModel(d_feat=None, **SMALL).fit(panels.series())
    with pytest.raises(ValueError, match="must have windows of 6 days as in training, got windows of 5 days"):
        fitted.predict(panels.series(step_len=5))
    with pytest.raises(ValueError, match="must have windows of 6 days as in training, got rows"):
        fitted.predict(panels.series().panel)
    for name, value in (("metric", "r2"), ("loss", "mae"), ("optimizer", "lion"), ("missing", "drop"), ("hidden_size", 0)):
        with pytest.raises(ValueError, match=f"GRUModel: {name} must be"):
            GRUModel(**{**SMALL, name: value})
    with pytest.raises(ValueError, match="rnn_type must be GRU or LSTM"):
        ALSTMModel(d_feat=None, rnn_type="RNN", **SMALL).fit(panels.rows())


def test_alstm_of_an_lstm(panels):
    model = ALSTMModel(d_feat=None, rnn_type="LSTM", **SMALL).fit(panels.rows())
    assert model.module_.state_dict()["rnn.weight_hh_l0"].shape == (32, 8)


def test_sfm(style, tmp_path):
    dataset = style()
    options = {**{name: value for name, value in SMALL.items() if name != "num_layers"}, "freq_dim": 3}
    model = SFMModel(d_feat=None, **options, optimizer="adam").fit(dataset, save_path=tmp_path / "m")
    assert len(model.predict(dataset)) == len(dataset.segment("test"))
    pd.testing.assert_series_equal(SFMModel.load(tmp_path / "m").predict(dataset), model.predict(dataset), check_exact=True)
    assert SFMModel().optimizer == "gd" and SFMModel(variant="paper", dropout_W=0.5).variant == "paper"
