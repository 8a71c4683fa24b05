"""PanelDataset: one float32 frame, named segments, and refusals that say what is wrong."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from alphakernels.data import PanelDataset, check_features_finite

SEGMENTS = {"train": ("2020-01-01", "2020-01-10"), "test": ("2020-01-13", None)}


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    index = pd.MultiIndex.from_product(
        [pd.bdate_range("2020-01-01", periods=15), ["B", "A", "C"]], names=["datetime", "instrument"]
    )
    return pd.DataFrame(rng.normal(size=(45, 4)), index=index, columns=["f1", "f2", "f3", "label"])


def test_rows_are_sorted_float32_and_cut_by_day(frame):
    panel = PanelDataset(frame.sample(frac=1, random_state=0), segments=SEGMENTS)
    expected = frame.sort_index()
    assert panel.features == ("f1", "f2", "f3") and panel.x.dtype == np.float32
    pd.testing.assert_frame_equal(panel.frame, expected.astype(np.float32))
    train = panel.segment("train")
    assert train.index.equals(expected.loc["2020-01-01":"2020-01-10"].index)
    np.testing.assert_array_equal(train.y, expected.loc["2020-01-01":"2020-01-10", "label"].to_numpy(np.float32))
    assert len(panel.segment("test").x) == 45 - len(train.x)
    assert np.shares_memory(train.x, panel.x)


def test_qlibs_two_level_columns(frame):
    columns = [("feature", "f1"), ("feature", "f2"), ("feature", "f3"), ("label", "LABEL0")]
    two_level = frame.set_axis(pd.MultiIndex.from_tuples(columns), axis=1)
    panel = PanelDataset(two_level, label="LABEL0", segments=SEGMENTS)
    assert panel.features == ("f1", "f2", "f3")
    np.testing.assert_array_equal(panel.y, frame.sort_index()["label"].to_numpy(np.float32))


def test_from_arrays_in_both_forms(frame):
    ordered = frame.sort_index()
    flat = PanelDataset.from_arrays(
        ordered[["f1", "f2", "f3"]].to_numpy(), ordered["label"].to_numpy(), index=ordered.index, names=["f1", "f2", "f3"]
    )
    cube = PanelDataset.from_arrays(
        ordered[["f1", "f2", "f3"]].to_numpy().reshape(15, 3, 3),
        ordered["label"].to_numpy().reshape(15, 3),
        days=ordered.index.levels[0],
        instruments=["A", "B", "C"],
        names=["f1", "f2", "f3"],
    )
    pd.testing.assert_frame_equal(flat.frame, ordered.astype(np.float32))
    pd.testing.assert_frame_equal(cube.frame, flat.frame)


def test_complex_arrays_are_refused(frame):
    x = frame[["f1", "f2"]].to_numpy()
    for name, arrays in (("features", (x * 1j,)), ("label", (x, x[:, 0] * 1j))):
        with pytest.raises(ValueError, match=f"from_arrays: {name} must be real numbers, got complex128"):
            PanelDataset.from_arrays(*arrays, index=frame.index)


def test_robust_zscore_is_fit_on_the_training_segment_alone(frame):
    panel = PanelDataset(frame, segments=SEGMENTS).robust_zscore(clip=None)
    train = frame.sort_index().loc["2020-01-01":"2020-01-10", ["f1", "f2", "f3"]]
    median = train.median()
    expected = (frame.sort_index()[["f1", "f2", "f3"]] - median) / ((train - median).abs().median() * 1.4826)
    np.testing.assert_allclose(panel.x, expected.to_numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    "change, options, message",
    [
        (lambda f: f.drop(columns="label"), {}, "label"),
        (lambda f: pd.concat([f, f.iloc[:1]]), {}, r"1 keys more than once: \(2020-01-01.*B\)"),
        (lambda f: f.assign(f2="x"), {}, "f2"),
        (lambda f: f.assign(f2=f["f2"] * 1j), {}, "must be numeric, and not complex, got f2 .complex128"),
        (lambda f: f.reset_index(drop=True), {}, "MultiIndex of \\(datetime, instrument\\)"),
        (lambda f: f.reset_index(), {}, "the index must be a MultiIndex .* set_index"),
        (
            lambda f: f.swaplevel().rename_axis(["symbol", "date"]),
            {},
            r"datetime must hold dates, .*: the index's levels must be named datetime and instrument, .* got \['symbol', 'date'\]; rename",
        ),
        (lambda f: f.to_numpy(), {}, "frame must be a DataFrame indexed by .*, got ndarray; PanelDataset.from_arrays takes arrays"),
        (lambda f: f["f1"], {}, "must be a DataFrame .*, got Series"),
        (lambda f: dict(f), {}, "must be a DataFrame .*, got dict"),
        (lambda f: f.iloc[:0], {}, "at least one row"),
    ],
)
def test_frames_that_are_refused(frame, change, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        PanelDataset(change(frame), **options)


def test_segments_that_are_refused(frame):
    panel = PanelDataset(frame, segments={**SEGMENTS, "old": ("1999", "2000")})
    with pytest.raises(ValueError, match="no segment 'valid' in the dataset; known segments: 'train', 'test', 'old'"):
        panel.segment("valid")
    with pytest.raises(ValueError, match="segment 'old' .* has no rows: the data runs from 2020-01-01"):
        panel.segment("old")


def test_nan_and_infinity_are_named_by_column(frame):
    x = frame[["f1", "f2", "f3"]].to_numpy(np.float32).copy()
    x[4, 1], x[7, 1], x[9, 2] = np.nan, np.inf, -np.inf
    with pytest.raises(ValueError, match=r"NaN or infinity in 2 of 3 columns.*f2 \(2\), f3 \(1\)"):
        check_features_finite(x, ["f1", "f2", "f3"])
    panel = PanelDataset(frame.assign(label=np.nan), segments=SEGMENTS)
    with pytest.raises(ValueError, match="segment 'train'"):
        panel.check_finite("train", label=True)
