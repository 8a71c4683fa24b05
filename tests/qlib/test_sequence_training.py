"""The sequence models against Qlib's classes: losses by epoch and predictions, from rows and from windows.

In float64, because in float32 a change in the last bit grows with every step of the optimizer, in Qlib as here; see
test_tabnet_training. Both sides take float32 data.
"""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from alphakernels import estimators
from alphakernels.data import PanelDataset

dataset_module = pytest.importorskip("qlib.data.dataset")

FIELDS, LAGS = 3, 8
SEGMENTS = {
    "train": ("2020-01-20", "2020-03-03"),  # 32 days
    "valid": ("2020-03-04", "2020-03-13"),
    "test": ("2020-03-16", "2020-03-26"),
}
BATCH = 31  # rows of the segments are multiples of 31 in the complete panel: Qlib drops the tail of what it evaluates
RECURRENT = {"hidden_size": 8, "num_layers": 2, "n_epochs": 3, "batch_size": BATCH, "lr": 0.01, "GPU": -1, "seed": 5}
SFM = {"hidden_size": 8, "freq_dim": 4, "n_epochs": 3, "batch_size": 4 * BATCH, "GPU": -1, "seed": 5}
ENCODER = {"d_model": 8, "nhead": 2, "num_layers": 2, "dropout": 0.0, "n_epochs": 3, "batch_size": BATCH, "lr": 0.01, "GPU": -1, "seed": 5}
CURVE, SCORES = 1e-4, 1e-5


def frame(missing=0.0, instruments=31):
    """FIELDS * LAGS columns, field after field, and a label; some rows missing."""
    rng = np.random.default_rng(0)
    index = pd.MultiIndex.from_product(
        [pd.bdate_range("2020-01-01", "2020-03-26"), [f"S{i:02d}" for i in range(instruments)]], names=["datetime", "instrument"]
    )
    x = rng.normal(size=(len(index), FIELDS * LAGS)).astype(np.float32)
    y = (x[:, 0] - x[:, LAGS] * x[:, -1] + 0.3 * rng.normal(size=len(index))).astype(np.float32)
    columns = [("feature", f"f{i}") for i in range(x.shape[1])] + [("label", "label")]
    table = pd.DataFrame(np.c_[x, y], index=index, columns=pd.MultiIndex.from_tuples(columns))
    return table[rng.random(len(table)) >= missing]


class WindowsOfQlib:
    """What its time-series models ask of a TSDatasetH: real samplers, over the days that a TSDatasetH hands them."""

    segments = SEGMENTS

    def __init__(self, table, step_len):
        self.table, self.step_len = table, step_len

    def prepare(self, segment, col_set, data_key=None):
        bounds = SEGMENTS[segment]
        extended = dataset_module.TSDatasetH._extend_slice(slice(*bounds), list(self.table.index.levels[0]), self.step_len)
        return dataset_module.TSDataSampler(
            self.table.loc[extended].copy(), *map(pd.Timestamp, bounds), step_len=self.step_len, fillna_type="none"
        )


def qlib_class(module, name, monkeypatch):
    module = importlib.import_module(f"qlib.contrib.model.{module}")
    if hasattr(module, "R"):  # no experiment is running that could record
        monkeypatch.setattr(module, "R", SimpleNamespace(get_recorder=lambda: SimpleNamespace(log_metrics=lambda **_: None)))
    return getattr(module, name)


def compare(ours, theirs, data, their_data, folder, in_float64, exact=True, tolerance=SCORES):
    """Fits both and compares losses and scores; each is made from its class and options."""
    with in_float64(exact):
        (cls, options), (their_cls, their_options) = ours, theirs
        model, their_model, scores, their_scores = cls(**options), their_cls(**their_options), {}, {}
        their_model.fit(their_data, their_scores, save_path=str(folder / "model.pt"))
        model.fit(data, scores)
        predicted, expected = model.predict(data), their_model.predict(their_data)
    for name in ("train", "valid"):
        assert len(scores[name]) == options["n_epochs"]
        np.testing.assert_allclose(scores[name], their_scores[name], rtol=CURVE)
    assert len(set(np.round(scores["train"], 6))) == options["n_epochs"]  # it moved
    expected = expected.loc[list(predicted.index)]
    assert len(predicted) == len(expected)
    np.testing.assert_allclose(predicted, expected, rtol=tolerance, atol=tolerance * expected.std())
    return model, their_model


ROWS = [
    ("GRUModel", "pytorch_gru", "GRU", RECURRENT),
    ("LSTMModel", "pytorch_lstm", "LSTM", RECURRENT),
    ("ALSTMModel", "pytorch_alstm", "ALSTM", RECURRENT),
    ("ALSTMModel", "pytorch_alstm", "ALSTM", {**RECURRENT, "optimizer": "gd", "lr": 0.1}),
    ("LocalformerModel", "pytorch_localformer", "LocalformerModel", ENCODER),
    ("TransformerModel", "pytorch_transformer", "TransformerModel", ENCODER),
    ("SFMModel", "pytorch_sfm", "SFM", {**SFM, "optimizer": "adam", "lr": 0.01}),
    ("SFMModel", "pytorch_sfm", "SFM", {**SFM, "optimizer": "gd", "lr": 0.1}),
]


@pytest.mark.parametrize(("name", "module", "cls", "options"), ROWS, ids=lambda value: value if isinstance(value, str) else "")
def test_rows(name, module, cls, options, tmp_path, in_float64, monkeypatch, rows_of_qlib):
    table = frame()
    ours = getattr(estimators, name), {**options, "d_feat": FIELDS, "progress": False}
    theirs = qlib_class(module, cls, monkeypatch), {**options, "d_feat": FIELDS}
    data = PanelDataset(table, segments=SEGMENTS)
    exact = name != "SFMModel"  # Qlib's SFM mixes its dtypes up and runs in float32 only
    model, their_model = compare(ours, theirs, data, rows_of_qlib(table, SEGMENTS), tmp_path, in_float64, exact, SCORES if exact else 1e-4)
    with in_float64(exact):
        loaded = ours[0](**ours[1]).load_qlib_checkpoint(tmp_path / "model.pt", FIELDS * LAGS)
        expected = their_model.predict(rows_of_qlib(table, SEGMENTS)).rename("score")
        # Of scores near zero, too, no more is known than their spread allows: in float32 both are 2e-6 of it and more from the float64 ones.
        pd.testing.assert_series_equal(loaded.predict(data), expected, check_dtype=False, rtol=SCORES, atol=SCORES * expected.std())


TWINS = [row for row in ROWS if row[0] != "SFMModel" and "optimizer" not in row[3]]


@pytest.mark.parametrize(("name", "module", "cls", "options"), TWINS, ids=lambda value: value if isinstance(value, str) else "")
def test_windows(name, module, cls, options, tmp_path, in_float64, monkeypatch):
    table = frame().iloc[:, -FIELDS - 1 :]
    ours = getattr(estimators, name), {**options, "d_feat": FIELDS, "progress": False}
    theirs = qlib_class(f"{module}_ts", cls, monkeypatch), {**options, "d_feat": FIELDS, "n_jobs": 0}
    compare(ours, theirs, PanelDataset(table, segments=SEGMENTS).windows(LAGS), WindowsOfQlib(table, LAGS), tmp_path, in_float64)


def test_windows_with_gaps_and_weights(tmp_path, in_float64, monkeypatch):
    from qlib.data.dataset.weight import Reweighter

    table = frame(missing=0.2).iloc[:, -FIELDS - 1 :]
    options = {**RECURRENT, "batch_size": 60}
    data = PanelDataset(table, segments=SEGMENTS).windows(LAGS)

    def weight(index):
        return pd.Series(0.5 + (index.codes[1] % 3), index=index, dtype=float)

    class ByInstrument(Reweighter):
        def __init__(self):
            pass

        def reweight(self, sampler):
            return weight(sampler.get_index().remove_unused_levels()).to_numpy()

    with in_float64():
        theirs, scores, their_scores = qlib_class("pytorch_lstm_ts", "LSTM", monkeypatch), {}, {}
        their_model = theirs(**options, d_feat=FIELDS, n_jobs=0)
        their_model.fit(WindowsOfQlib(table, LAGS), their_scores, save_path=str(tmp_path / "model.pt"), reweighter=ByInstrument())
        model = estimators.LSTMModel(**options, d_feat=FIELDS, progress=False, drop_tail=True)
        model.fit(data, scores, reweighter=lambda segment: weight(segment.index.remove_unused_levels()))
        expected = their_model.predict(WindowsOfQlib(table, LAGS))
        np.testing.assert_allclose(model.predict(data), expected.loc[list(data.segment("test").index)], rtol=1e-5, atol=1e-6)
    # Of the validation set it drops another tail, because it lists samples by instrument.
    np.testing.assert_allclose(scores["train"], their_scores["train"], rtol=CURVE)


def test_rows_without_label_as_qlibs_gru_treats_them(tmp_path, in_float64, monkeypatch, rows_of_qlib):
    table = frame(instruments=40)
    table.iloc[np.random.default_rng(1).random(len(table)) < 0.2, -1] = np.nan
    options = {**RECURRENT, "batch_size": 100, "d_feat": FIELDS}
    ours = estimators.GRUModel, {**options, "progress": False, "drop_tail": True}
    theirs = qlib_class("pytorch_gru", "GRU", monkeypatch), options
    compare(ours, theirs, PanelDataset(table, segments=SEGMENTS), rows_of_qlib(table, SEGMENTS), tmp_path, in_float64)
