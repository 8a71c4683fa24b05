"""LocalFormer and Transformer: rows and windows, batch cuts, weight decay, dropout, memory, attention, and what is refused."""

from __future__ import annotations

import inspect

import numpy as np
import pandas as pd
import pytest
import torch

from alphakernels.estimators import ALSTMModel, GRUModel, LocalformerModel, LSTMModel, TransformerModel
from alphakernels.ops.local_encoder_layer import reference
from alphakernels.training import CheckpointError, ic_by_day

MODELS = (LocalformerModel, TransformerModel)
SMALL = {
    "d_feat": None, "d_model": 8, "nhead": 2, "num_layers": 2, "dim_feedforward": 19, "batch_size": 64, "n_epochs": 2, "lr": 0.01,
    "seed": 3, "GPU": -1, "progress": False,
}  # fmt: skip

both = pytest.mark.parametrize("model", MODELS)


@both
def test_defaults_are_qlibs(model):
    expected = {
        "d_feat": 20, "d_model": 64, "batch_size": 2048, "nhead": 2, "num_layers": 2, "dropout": 0, "n_epochs": 100, "lr": 1e-4,
        "metric": "", "early_stop": 5, "loss": "mse", "optimizer": "adam", "reg": 1e-3, "n_jobs": 10, "GPU": 0, "seed": None,
    }  # fmt: skip
    parameters = inspect.signature(model).parameters
    assert list(parameters)[: len(expected)] == list(expected)
    assert {name: parameters[name].default for name in expected} == expected
    assert model().get_params()["dim_feedforward"] == 2048


@both
def test_predicts_every_row_in_order(model, style, panels):
    dataset = style()
    fitted = model(**SMALL).fit(dataset)
    assert fitted.d_feat_ == panels.FIELDS
    segment, scores = dataset.segment("test"), fitted.predict(dataset)
    assert scores.index.equals(segment.index) and scores.dtype == np.float32
    with torch.inference_mode():
        expected = fitted.module_(torch.as_tensor(segment.x[:])).numpy()
    np.testing.assert_array_equal(scores, expected)
    assert [len(fitted.evals_result_[name]) for name in ("train", "valid")] == [2, 2]


@pytest.mark.parametrize("model", [*MODELS, GRUModel, LSTMModel, ALSTMModel])
def test_scores_do_not_depend_on_the_batch_cut(model, style):
    dataset = style()
    fitted = model(**{**(SMALL if model in MODELS else {"d_feat": None, "GPU": -1, "seed": 3, "progress": False}), "n_epochs": 0})
    fitted.fit(dataset)
    whole = fitted.predict(dataset)
    for size in (1, 2, 5, 16, 33, 100):
        fitted.batch_size = size
        pd.testing.assert_series_equal(fitted.predict(dataset), whole, check_exact=True)
    day = whole.index[5][0]
    pd.testing.assert_series_equal(fitted.predict(dataset, (day, day)), whole.loc[[day]], check_exact=True)


@both
def test_learns(model, style):
    dataset = style(missing=0.0)
    fitted = model(**{**SMALL, "n_epochs": 25, "early_stop": 25, "lr": 0.02, "metric": "ic", "reg": 0.0}).fit(dataset)
    ic = ic_by_day(fitted.predict(dataset), dataset.segment("test").label_series()).mean()
    assert ic > 0.7
    valid = ic_by_day(fitted.predict(dataset, "valid"), dataset.segment("valid").label_series()).mean()
    assert max(fitted.evals_result_["valid"]) == pytest.approx(valid, abs=1e-5)


@both
def test_saved_and_loaded(model, tmp_path, style):
    dataset = style()
    fitted = model(**SMALL, memory="low").fit(dataset, save_path=tmp_path / "m")
    loaded = model.load(tmp_path / "m")
    pd.testing.assert_series_equal(loaded.predict(dataset), fitted.predict(dataset), check_exact=True)
    assert (loaded.d_feat_, loaded.step_len_, loaded.module_.memory) == (fitted.d_feat_, fitted.step_len_, "low")
    torch.save(fitted.module_.state_dict(), tmp_path / "state.pt")
    features = len(dataset.features)
    bare = model(**{**SMALL, "d_feat": fitted.d_feat_}).load_qlib_checkpoint(tmp_path / "state.pt", features, fitted.step_len_)
    pd.testing.assert_series_equal(bare.predict(dataset), fitted.predict(dataset), check_exact=True)
    other = next(m for m in MODELS if m is not model)
    with pytest.raises(CheckpointError, match=f"saved {other.__name__}"):
        other.load(tmp_path / "m")


@both
def test_low_memory_and_resuming_are_the_same_fit(model, style, tmp_path):
    options = {**SMALL, "dropout": 0.3, "n_epochs": 3}
    scores = model(**options).fit(style(), checkpoint_dir=tmp_path).predict(style())
    low = model(**options, memory="low").fit(style())
    pd.testing.assert_series_equal(low.predict(style()), scores, check_exact=True)
    again = model(**options, memory="low").fit(style(), checkpoint_dir=tmp_path, resume=True)
    pd.testing.assert_series_equal(again.predict(style()), scores, check_exact=True)
    assert not model(**{**options, "seed": 4}).fit(style()).predict(style()).equals(scores)
    assert not model(**{**options, "dropout": 0.0}).fit(style()).predict(style()).equals(scores)


@both
def test_reg_is_weight_decay(model, style):
    dataset, rate, decay = style(), 0.1, 0.5
    options = {**SMALL, "n_epochs": 1, "batch_size": 10**4, "optimizer": "gd", "lr": rate, "reg": decay}
    segment = dataset.segment("train")
    fitted = model(**{**options, "batch_size": len(segment)}).fit(dataset)
    start = model(**{**options, "n_epochs": 0}).fit(dataset).module_.train()
    (start(torch.as_tensor(segment.x[:])) - torch.as_tensor(segment.y)).square().mean().backward()
    for name, p in start.named_parameters():
        # The layer that the others are copied from takes part in nothing.
        moved = p if p.grad is None else p - rate * (p.grad.clamp(-3, 3) + decay * p)
        torch.testing.assert_close(fitted.module_.state_dict()[name], moved.detach(), rtol=1e-4, atol=1e-6)


@both
def test_arrays(model, panels):
    dataset = panels.series()
    train, test = dataset.segment("train"), dataset.segment("test")
    options = {**SMALL, "seed": 5}
    fitted = model(**options).fit(train.x[:], train.y, eval_set=(train.x[:], train.y))
    scores = fitted.predict(test.x[:])
    assert scores.shape == (len(test),) and np.isfinite(scores).all()
    assert fitted.step_len_ == panels.LAGS
    np.testing.assert_array_equal(fitted.predict(test.x[::-1]), scores[::-1])


@both
def test_attention(model, style, panels, monkeypatch):
    dataset = style()
    fitted = model(**SMALL).fit(dataset)
    segment = dataset.segment("test")
    maps = fitted.attention(dataset)
    steps, heads = panels.LAGS, SMALL["nhead"]
    assert maps.shape == (len(segment) * heads * steps, steps) and maps.dtypes.unique() == [np.float32]
    assert maps.index.names == ["datetime", "instrument", "head", "days back"]
    assert list(maps.columns) == list(range(steps - 1, -1, -1))
    np.testing.assert_allclose(maps.sum(axis=1), 1, rtol=1e-5)
    # torch's own attention on what goes into the last layer.
    seen, net = {}, fitted.module_
    last = net.transformer_encoder.layers[-1]
    monkeypatch.setattr(type(last), "attention", lambda self, x, mask=None: seen.setdefault("x", x.clone()) * 0)
    fitted.module_.attention(torch.as_tensor(segment.x[:]))
    monkeypatch.undo()
    attend = torch.nn.MultiheadAttention(SMALL["d_model"], heads, batch_first=True)
    attend.load_state_dict(last.self_attn.state_dict())
    with torch.no_grad():
        expected = attend(*[seen["x"]] * 3, need_weights=True, average_attn_weights=False)[1]
    np.testing.assert_allclose(maps.to_numpy().reshape(expected.shape), expected, rtol=1e-4, atol=1e-6)


@both
def test_attention_of_chosen_samples(model, panels):
    dataset = panels.rows()
    fitted = model(**SMALL).fit(dataset)
    index, maps = dataset.segment("test").index, fitted.attention(dataset)
    steps = SMALL["nhead"] * panels.LAGS
    mask = np.zeros(len(index), dtype=bool)
    mask[[4, 9]] = True
    for samples in ([4, 9], np.array([4, 9]), index[[4, 9]], list(index[[4, 9]]), mask):
        chosen = fitted.attention(dataset, samples=samples)
        pd.testing.assert_frame_equal(chosen, pd.concat([maps[i * steps : (i + 1) * steps] for i in (4, 9)]), check_exact=True)
    assert chosen.loc[(*index[9], 1, 0)].shape == (panels.LAGS,)
    assert fitted.attention(dataset, samples=[9, 4]).index[0][:2] == index[9]
    first = fitted.attention(dataset, layer=0)
    assert not first.equals(maps) and first.equals(fitted.attention(dataset, layer=-2))
    day = index[0][0]
    assert fitted.attention(dataset, (day, day)).index.unique(0) == [day]
    for samples, error in (
        ([], "at least one row, got none"),
        ([(day, "nobody")], "must be rows of the segment, got .*nobody"),
        ([len(index)], "positions from 0 to"),
        ([0.5], "got float64"),
        (~mask[1:], "or a mask of length"),
        (mask & False, "with a row in it"),
    ):
        with pytest.raises(ValueError, match=error):
            fitted.attention(dataset, samples=samples)
    for layer in (2, -3):
        with pytest.raises(ValueError, match="layer must be from 0 to 1, or -1 for the last"):
            fitted.attention(dataset, layer=layer)
    with pytest.raises(ValueError, match="must be fitted first"):
        model(**SMALL).attention(dataset)


@both
def test_attention_is_computed_only_when_asked_for(model, panels, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the weights were computed")

    monkeypatch.setattr(reference, "attention_weights", refuse)
    dataset = panels.series()
    fitted = model(**SMALL).fit(dataset)
    fitted.predict(dataset)
    with pytest.raises(AssertionError, match="the weights were computed"):
        fitted.attention(dataset, samples=[0])


@both
def test_what_is_refused(model, panels):
    with pytest.raises(ValueError, match=f"{model.__name__}: d_model must be a multiple of nhead = 3, got 8"):
        model(d_model=8, nhead=3)
    with pytest.raises(ValueError, match="memory must be one of 'auto', 'low', got 'high'"):
        model(memory="high")
    for name in ("d_model", "nhead", "num_layers", "dim_feedforward", "batch_size", "early_stop"):
        with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1.*, got 0"):
            model(**{name: 0})
    with pytest.raises(ValueError, match="d_feat must be the dataset's number of features, 3, got 20"):
        model(**{**SMALL, "d_feat": 20}).fit(panels.series())
