"""TabNetModel: Qlib's streams and arithmetic, the paper's variant, and every way data can be wrong."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pandas as pd
import pytest
import torch

from alphakernels.data import PanelDataset
from alphakernels.estimators import TabNetModel
from alphakernels.estimators._segments import load_rows
from alphakernels.models import TabNet
from alphakernels.training import Callback, CheckpointError, NonFiniteLossError, load_tensors

SEGMENTS = {
    "train": ("2020-01-01", "2020-01-31"),
    "valid": ("2020-02-03", "2020-02-14"),
    "test": ("2020-02-17", "2020-02-28"),
}
SMALL = {
    "d_feat": None,
    "out_dim": 6,
    "n_d": 5,
    "n_a": 3,
    "n_shared": 1,
    "n_ind": 2,
    "n_steps": 3,
    "batch_size": 64,
    "vbs": 32,
    "n_epochs": 3,
    "pretrain_n_epochs": 2,
    "seed": 11,
    "GPU": -1,
    "progress": False,
}


def frame(instruments=13, features=5, seed=0):
    rng = np.random.default_rng(seed)
    days = pd.bdate_range("2020-01-01", "2020-02-28")
    index = pd.MultiIndex.from_product(
        [days, [f"S{i:02d}" for i in range(instruments)]], names=["datetime", "instrument"]
    )
    x = rng.normal(size=(len(index), features)).astype(np.float32)
    table = pd.DataFrame(x, index=index, columns=[f"f{i}" for i in range(features)])
    table["label"] = (x[:, 0] - x[:, 1] * x[:, 2] + 0.1 * rng.normal(size=len(index))).astype(np.float32)
    return table


def dataset(table=None, segments=None, **options):
    return PanelDataset(frame(**options) if table is None else table, label="label", segments=segments or SEGMENTS)


def rows_of(table, segment):
    start, end = SEGMENTS[segment]
    days = table.index.get_level_values(0)
    return (days >= start) & (days <= end)


def test_defaults_are_qlibs():
    parameters = inspect.signature(TabNetModel).parameters
    expected = {
        "d_feat": 158, "out_dim": 64, "final_out_dim": 1, "batch_size": 4096, "n_d": 64, "n_a": 64, "n_shared": 2,
        "n_ind": 2, "n_steps": 5, "n_epochs": 100, "pretrain_n_epochs": 50, "relax": 1.3, "vbs": 2048, "seed": 993,
        "optimizer": "adam", "loss": "mse", "metric": "", "early_stop": 20, "GPU": 0, "pretrain_loss": "custom",
        "ps": 0.3, "lr": 0.01, "pretrain": True, "pretrain_file": None,
    }  # fmt: skip
    assert {name: parameters[name].default for name in expected} == expected
    assert list(parameters)[: len(expected)] == list(expected)


def test_head_is_trained_in_the_paper_variant_only():
    class Watch(Callback):
        def __init__(self):
            self.heads = []

        def on_epoch_start(self, state):
            if state.name == "finetune":
                self.heads.append(state.module.fc.weight.detach().clone())

    for variant in ("qlib", "paper"):
        watch = Watch()
        TabNetModel(**SMALL, variant=variant).fit(dataset(), callbacks=[watch])
        assert torch.equal(watch.heads[0], watch.heads[-1]) == (variant == "qlib")


def test_sizes_reach_the_encoder_in_the_paper_variant_only():
    data = dataset()
    small = {**SMALL, "n_epochs": 1, "pretrain": False}
    assert TabNetModel(**small).fit(data).module_.model.fc.weight.shape == (6, 64)
    paper = TabNetModel(**small, variant="paper").fit(data).module_
    assert paper.model.fc.weight.shape == (6, 5)
    assert len(paper.model.steps) == 2


def test_sparsity_term_makes_masks_sparser():
    def entropy(weight):
        options = {**SMALL, "n_epochs": 12, "pretrain": False, "variant": "paper", "lambda_sparse": weight}
        model = TabNetModel(**options).fit(dataset())
        with torch.inference_mode():
            x = torch.from_numpy(dataset().segment("train").x.copy())
            masks, _ = model.module_.model.masks(x, torch.ones_like(x))
            return sum(float(-(mask * torch.log(mask + 1e-10)).sum()) for mask in masks)

    assert entropy(2.0) < entropy(0.0)


@pytest.mark.parametrize("variant", ["qlib", "paper"])
def test_it_learns_and_predicts_in_index_order(variant):
    data = dataset(instruments=30)
    model = TabNetModel(**{**SMALL, "n_epochs": 25, "early_stop": 25, "lr": 0.02}, variant=variant).fit(data)
    scores = model.predict(data)
    table = frame(instruments=30)
    expected = table[rows_of(table, "test")]
    assert scores.index.equals(expected.index)
    assert scores.dtype == np.float32
    assert scores.corr(expected["label"]) > 0.5
    x = torch.from_numpy(expected.iloc[:, :-1].to_numpy().copy())
    with torch.inference_mode():
        whole = model.module_(x, torch.ones_like(x)).numpy()
    np.testing.assert_allclose(scores.to_numpy(), whole, rtol=1e-4, atol=1e-5)


def test_seeds_are_the_models_own():
    data = dataset()
    torch.manual_seed(1)
    np.random.seed(1)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(1)
    np.random.seed(1)
    first = TabNetModel(**SMALL).fit(data)
    scores = first.predict(data)
    assert torch.equal(torch.rand(3), expected[0])
    np.testing.assert_array_equal(np.random.rand(3), expected[1])
    again = first.fit(data).predict(data)  # fit twice
    pd.testing.assert_series_equal(again, scores, check_exact=True)
    other = TabNetModel(**{**SMALL, "seed": 12}).fit(data).predict(data)
    assert not np.allclose(other, scores)


def test_own_pretraining_segments_are_used_and_the_encoder_is_written(tmp_path):
    data = dataset(segments={**SEGMENTS, "pretrain": SEGMENTS["test"], "pretrain_validation": SEGMENTS["valid"]})
    model = TabNetModel(**SMALL, pretrain_file=tmp_path / "encoder.safetensors").fit(data)
    tensors, metadata = load_tensors(tmp_path / "encoder.safetensors")
    assert metadata["kind"] == "encoder"
    TabNet(5, 6, vbs=32, relax=1.3).load_state_dict(tensors)
    assert not model.predict(data).equals(TabNetModel(**SMALL).fit(dataset()).predict(data))


@pytest.mark.parametrize("validation_days", [("2020-02-03", "2020-02-03"), ("2020-02-03", "2020-02-07")])
def test_few_validation_rows_are_enough(validation_days):
    for instruments in (1, 3):
        table = frame(instruments=instruments)
        data = dataset(table, segments={**SEGMENTS, "valid": validation_days})
        options = {**SMALL, "batch_size": 16, "vbs": 16}
        model = TabNetModel(**options).fit(data)
        assert all(map(math.isfinite, model.evals_result_["valid"]))
        assert model.predict(data, "valid").shape == (len(data.segment("valid").x),)


def test_nan_labels_are_skipped():
    table = frame()
    table.loc[table.index[::4], "label"] = np.nan
    model = TabNetModel(**SMALL).fit(dataset(table))
    assert all(map(math.isfinite, model.evals_result_["train"]))


def test_missing_features_are_named():
    table = frame()
    table.iloc[3, 1] = table.iloc[5, 4] = np.nan
    with pytest.raises(
        ValueError, match="in 2 of 5 columns of segment 'train' .299 rows.: f1 .1., f4 .1..*missing=.fill"
    ):
        TabNetModel(**SMALL).fit(dataset(table))


def test_missing_features_are_filled_as_qlib_does():
    table = frame()
    table.iloc[3, 1] = table.iloc[5, 4] = np.nan
    table.iloc[-2, 0] = np.nan
    table.iloc[:, 2] = np.nan
    data = dataset(table)
    model = TabNetModel(**SMALL, missing="fill").fit(data)
    assert np.isnan(data.segment("train").x).sum() == 2 + len(data.segment("train").x)  # the caller's data is untouched
    zeroed = dataset(table.fillna(0.0))
    for segment in SEGMENTS:
        pd.testing.assert_series_equal(model.predict(data, segment), model.predict(zeroed, segment))
    x = table[rows_of(table, "train")].iloc[:, :-1]
    filled = load_rows(data, "train", label=True, missing="fill", fill="mean").x
    np.testing.assert_allclose(filled, x.fillna(x.mean()).fillna(0.0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("missing", ["error", "fill"])
def test_infinity_is_named(missing):
    table = frame()
    table.iloc[-1, 2] = -np.inf
    model = TabNetModel(**SMALL, missing=missing).fit(dataset(table))
    with pytest.raises(ValueError, match="in 1 of 5 columns of segment 'test' .130 rows.: f2 .1.;"):
        model.predict(dataset(table))


def test_bad_segments():
    table = frame()
    with pytest.raises(ValueError, match="segment 'valid' .* has no rows: the data runs from 2020-01-01 to 2020-02-28"):
        TabNetModel(**SMALL).fit(dataset(table, segments={**SEGMENTS, "valid": ("2030-01-01", "2030-02-01")}))
    table.loc[rows_of(table, "valid"), "label"] = np.nan
    with pytest.raises(ValueError, match="observed somewhere in segment 'valid', got NaN in all 130 rows"):
        TabNetModel(**SMALL).fit(dataset(table))


def test_a_dataset_without_label_is_for_prediction_only():
    unlabelled = PanelDataset(frame().drop(columns="label"), label=None, segments=SEGMENTS)
    with pytest.raises(ValueError, match="segment 'train' must have a label to train on"):
        TabNetModel(**SMALL).fit(unlabelled)
    model = TabNetModel(**SMALL).fit(dataset())
    pd.testing.assert_series_equal(model.predict(unlabelled), model.predict(dataset()))


def test_features_that_do_not_match_the_model():
    with pytest.raises(ValueError, match="d_feat must be the dataset's number of features, 5, got 158"):
        TabNetModel(**{**SMALL, "d_feat": 158}).fit(dataset())
    model = TabNetModel(**{**SMALL, "d_feat": 5}).fit(dataset())
    with pytest.raises(ValueError, match="must have the model's 5 features, got 4"):
        model.predict(dataset(frame().drop(columns="f2")))
    with pytest.raises(ValueError, match="feature 2 must be 'f2' as in training, got 'other'"):
        model.predict(dataset(frame().rename(columns={"f2": "other"})))
    with pytest.raises(ValueError, match="feature 0 must be 'f0' .* got 'f1'; the names are the same in another order"):
        model.predict(dataset(frame()[["f1", "f0", "f2", "f3", "f4", "label"]]))


def test_not_fitted():
    for call in (lambda m: m.predict(dataset()), lambda m: m.save("x"), lambda m: m.explain(dataset())):
        with pytest.raises(ValueError, match="TabNetModel must be fitted first"):
            call(TabNetModel(**SMALL))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "mae"}, "loss must be one of 'mse', got 'mae'"),
        ({"metric": "ic2"}, "metric must be one of '', 'loss', got 'ic2'"),
        ({"optimizer": "lion"}, "optimizer must be one of 'adam', 'gd', 'sgd', got 'lion'"),
        ({"variant": "mine"}, "variant must be one of 'qlib', 'paper', got 'mine'"),
        ({"missing": "drop"}, "missing must be one of 'error', 'fill', got 'drop'"),
        ({"final_out_dim": 2}, "final_out_dim must be one of 1, got 2"),
        ({"vbs": 0}, "vbs must be an integer of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"ps": 1.5}, "ps must be a probability, a number from 0 to 1, got 1.5"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TabNetModel(**arguments)


def test_parameters_go_in_and_out():
    model = TabNetModel(**SMALL, optimizer="Adam")
    assert model.get_params()["optimizer"] == "Adam"
    assert TabNetModel(**model.get_params()).get_params() == model.get_params()
    assert model.set_params(lr=0.5).get_params()["lr"] == 0.5
    with pytest.raises(ValueError, match="parameters must be among d_feat, .*, got width"):
        model.set_params(width=3)
    with pytest.raises(ValueError, match="vbs must be an integer of at least 1"):
        model.set_params(vbs=0)
    assert "TabNetModel(d_feat=None, out_dim=6" in repr(model)


def test_nan_loss_keeps_the_best_weights():
    weights = []

    class Explode(Callback):
        def on_epoch_end(self, state):
            if state.name == "finetune":
                weights.append({name: tensor.clone() for name, tensor in state.module.state_dict().items()})

        def on_batch_end(self, state):
            if state.name == "finetune" and state.epoch == 2:
                state.module.model.fc.weight.data.fill_(math.nan)

    model, data = TabNetModel(**SMALL), dataset()
    with pytest.raises(NonFiniteLossError, match="epoch 2, batch 1: .* the weights or gradients blew up") as caught:
        model.fit(data, callbacks=[Explode()])
    assert len(caught.value.history) == 2
    assert len(model.evals_result_["valid"]) == 2
    best = weights[caught.value.best_epoch]
    assert all(torch.equal(tensor, best[name]) for name, tensor in model.module_.state_dict().items())
    assert np.isfinite(model.predict(data)).all()


def test_importances_are_the_normalised_sum_of_local_masks():
    data = dataset()
    model = TabNetModel(**SMALL).fit(data)
    local = model.explain(data, "train")
    assert local.index.equals(data.segment("train").index)
    assert list(local.columns) == list(data.features)
    assert (local >= 0).all(axis=None)
    sums = local.sum(axis=1).to_numpy()
    assert np.all(np.isclose(sums, 1.0, atol=1e-5) | (sums == 0))
    assert sums.mean() > 0.9
    total = model.feature_importances(data, "train")
    np.testing.assert_allclose(total, local.sum() / local.sum().sum(), rtol=1e-5)
    assert total.sum() == pytest.approx(1.0)
    assert list(total.index) == list(data.features)


def test_qlib_checkpoints_are_read(tmp_path):
    data = dataset()
    model = TabNetModel(**SMALL).fit(data)
    torch.save(model.module_.state_dict(), tmp_path / "qlib.model")
    read = TabNetModel(**SMALL).load_qlib_checkpoint(tmp_path / "qlib.model")
    pd.testing.assert_series_equal(read.predict(data), model.predict(data), check_exact=True)
    read.save(tmp_path / "own")
    pd.testing.assert_series_equal(TabNetModel.load(tmp_path / "own").predict(data), model.predict(data))
    with pytest.raises(CheckpointError, match="model.fc.weight: expected .7, 64., got .6, 64."):
        TabNetModel(**{**SMALL, "out_dim": 7}).load_qlib_checkpoint(tmp_path / "qlib.model")
    torch.save(model.module_.model.state_dict(), tmp_path / "encoder.model")
    with pytest.raises(CheckpointError, match="a pretrained encoder without its head"):
        TabNetModel(**SMALL).load_qlib_checkpoint(tmp_path / "encoder.model")
    torch.save(model.module_, tmp_path / "pickle.model")
    with pytest.raises(CheckpointError, match="cannot be read as weights only"):
        TabNetModel(**SMALL).load_qlib_checkpoint(tmp_path / "pickle.model")
    (tmp_path / "cut.model").write_bytes((tmp_path / "qlib.model").read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="cannot be read as weights only"):
        TabNetModel(**SMALL).load_qlib_checkpoint(tmp_path / "cut.model")
    with pytest.raises(FileNotFoundError):
        TabNetModel(**SMALL).load_qlib_checkpoint(tmp_path / "none.model")
