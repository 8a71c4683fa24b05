"""Estimators on arrays: the same as on a dataset, in the order of the arrays, with scikit-learn's manners."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from alphakernels.data import PanelDataset
from alphakernels.estimators import GeneralPTNN, GRUModel, TabNetModel
from alphakernels.models import GRUNet, MLPNet

TABNET = {
    "d_feat": None, "out_dim": 4, "n_steps": 2, "batch_size": 50, "vbs": 25, "n_epochs": 2, "pretrain": False, "GPU": -1,
    "progress": False,
}  # fmt: skip
GRU = {"d_feat": 2, "hidden_size": 4, "num_layers": 1, "n_epochs": 2, "batch_size": 40, "GPU": -1, "seed": 0, "progress": False}


def panel(seed=0):
    rng = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product([pd.bdate_range("2020-01-01", periods=20), list("CABDEFGHI")], names=["datetime", "instrument"])
    return pd.DataFrame(rng.normal(size=(180, 5)).astype(np.float32), index=index, columns=[*"wxyz", "label"])


SEGMENTS = {"train": ("2020-01-01", "2020-01-14"), "valid": ("2020-01-15", "2020-01-20"), "test": ("2020-01-21", "2020-01-31")}


@pytest.mark.parametrize("kind", ["frame", "arrays", "tensors"])
def test_the_same_as_a_dataset_in_the_order_given(kind):
    frame = panel().sample(frac=1, random_state=1)  # rows in any order
    parts = {name: frame[frame.index.get_level_values(0).to_series().between(*days).to_numpy()] for name, days in SEGMENTS.items()}
    expected = TabNetModel(**TABNET).fit(PanelDataset(frame, label="label", segments=SEGMENTS))
    scores = expected.predict(PanelDataset(frame, label="label", segments=SEGMENTS), "test")

    def given(part):
        x, y = part[list("wxyz")], part["label"]
        if kind == "frame":
            return x, y, None, None
        make = torch.from_numpy if kind == "tensors" else np.asarray
        return make(x.to_numpy()), make(y.to_numpy()), part.index.get_level_values(0), part.index.get_level_values(1).to_numpy()

    x, y, dates, instruments = given(parts["train"])
    model = TabNetModel(**TABNET).fit(x, y, eval_set=given(parts["valid"]), dates=dates, instruments=instruments)
    assert model.evals_result_ == expected.evals_result_
    assert model.features_ == (list("wxyz") if kind == "frame" else None)
    x, _, dates, instruments = given(parts["test"])
    found = model.predict(x, dates=dates, instruments=instruments)
    assert isinstance(found, np.ndarray) and found.dtype == np.float32
    np.testing.assert_array_equal(found, scores.loc[parts["test"].index].to_numpy())
    assert model.score(x, parts["test"]["label"]) <= 1


def test_windows_as_arrays():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5, 2)).astype(np.float32)
    y = x[:, -1, 0] + 0.1 * rng.normal(size=200)
    model = GRUModel(**GRU | {"n_epochs": 30, "lr": 0.02}).fit(x[:150], y[:150], eval_set=[(x[150:], y[150:])])
    assert isinstance(model.module_, GRUNet)
    assert model.score(x[150:], y[150:]) > 0.5
    # Each sample is its window alone: neither the order nor the company counts.
    order = rng.permutation(50)
    np.testing.assert_allclose(model.predict(x[150:][order]), model.predict(x[150:])[order], rtol=1e-5, atol=1e-6)
    rows = x.transpose(0, 2, 1).reshape(200, 10)  # the same as rows, feature after feature
    flat = GRUModel(**GRU | {"n_epochs": 1}).fit(rows[:150], y[:150])
    assert flat.predict(rows[150:]).shape == (50,)
    with pytest.raises(ValueError, match="must have windows of 5 days as in training, got rows"):
        model.predict(x[:4, 0])


def test_without_eval_set_the_training_rows_choose():
    x = np.random.default_rng(0).normal(size=(60, 4))
    model = TabNetModel(**TABNET).fit(x, x[:, 0])
    assert model.evals_result_["train"] == model.evals_result_["valid"]


@pytest.mark.parametrize(
    ("x", "y", "options", "error", "message"),
    [
        (np.ones((5, 2)), None, {}, ValueError, "requires y to be passed, but the target y is None"),
        (np.ones(5), np.ones(5), {}, ValueError, "Expected 2D array .* Reshape your data"),
        (np.ones((5, 2, 2, 2)), np.ones(5), {}, ValueError, r"must be \[N, D\] or \[N, T, D\]"),
        (np.ones((0, 2)), np.ones(0), {}, ValueError, "Found array with 0 sample"),
        (np.ones((1, 2)), np.ones(1), {}, ValueError, "at least 2 rows"),
        (np.ones((5, 2)) * 1j, np.ones(5), {}, ValueError, "Complex data not supported"),
        (np.array([["a", "b"]] * 5), np.ones(5), {}, ValueError, "X must hold numbers"),
        (np.ones((5, 2)), np.ones(4), {}, ValueError, r"y must be of shape \[5\].*got \[4\]"),
        (np.ones((5, 2)), np.full(5, np.inf), {}, ValueError, "Input y contains infinity"),
        (np.ones((5, 2)), np.full(5, np.nan), {}, ValueError, "observed somewhere"),
        (np.full((5, 2), np.nan), np.ones(5), {}, ValueError, "NaN or infinity in 2 of 2 columns"),
        (np.ones((5, 2)), np.ones(5), {"dates": ["2020"]}, ValueError, "dates must have one entry a row of X, 5, got 1"),
        (np.ones((5, 2)), np.ones(5), {"eval_set": np.ones(3)}, ValueError, r"eval_set must be \(X, y\)"),
        (np.ones((5, 2)), np.ones(5), {"eval_set": (np.ones((5, 3)), np.ones(5))}, ValueError, "X's 2 features, got 3"),
        (np.ones((5, 2)), np.ones(5), {"dates": ["x"] * 5}, ValueError, "datetime must hold dates"),
        (np.ones((4, 2)), np.ones(4), {"dates": ["2020-01-01"] * 4, "instruments": list("abca")}, ValueError, "more than once"),
    ],
)
def test_bad_arrays(x, y, options, error, message):
    with pytest.raises(error, match=message):
        TabNetModel(**TABNET).fit(x, y, **options)


def test_other_columns_when_predicting():
    x = np.random.default_rng(0).normal(size=(60, 4))
    model = TabNetModel(**TABNET)
    assert not hasattr(model, "n_features_in_")
    with pytest.raises(ValueError, match="must be fitted first"):
        model.predict(x)
    model.fit(x, x[:, 0])
    assert model.n_features_in_ == 4
    with pytest.raises(ValueError, match="X has 3 features, but TabNetModel is expecting 4 features as input"):
        model.predict(x[:, :3])
    with pytest.warns(UserWarning, match="column-vector y"):
        TabNetModel(**TABNET).fit(x, x[:, :1])


def test_networks_by_class_with_arrays():
    x = np.random.default_rng(0).normal(size=(300, 3))
    options = {"pt_model_uri": MLPNet, "pt_model_kwargs": {"input_dim": 3, "layers": (16,)}, "batch_size": 50, "lr": 0.02, "seed": 1}
    model = GeneralPTNN(**options, n_epochs=20, GPU=-1, progress=False).fit(x, x[:, 0] - x[:, 1])
    assert model.score(x, x[:, 0] - x[:, 1]) > 0.8
