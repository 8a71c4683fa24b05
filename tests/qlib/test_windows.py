"""Windows against Qlib's TSDataSampler and TSDatasetH on the same frame."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from alphakernels.data import PanelDataset, WindowBatches

dataset_module = pytest.importorskip("qlib.data.dataset")


def frame(seed=0, days=30, instruments=9):
    """Missing rows, NaN features, instruments that start late, stop early, or have one row."""
    rng = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product(
        [pd.bdate_range("2020-01-01", periods=days), [f"S{i}" for i in range(instruments)]], names=["datetime", "instrument"]
    )
    keep = rng.random(len(index)) < 0.8
    day, name = index.codes
    keep &= ~((name == 0) & (day < 14)) & ~((name == 1) & (day > 12)) & ((name != 2) | (day == 20))
    values = rng.normal(size=(len(index), 5)).astype(np.float32)
    values[rng.random(values.shape) < 0.05] = np.nan
    columns = pd.MultiIndex.from_tuples([("feature", name) for name in "abcd"] + [("label", "label")])
    return pd.DataFrame(values, index=index, columns=columns)[keep]


@pytest.mark.parametrize("step_len", [1, 5, 12, 40])
@pytest.mark.parametrize("bounds", [("2020-01-01", "2020-01-20"), ("2020-01-20", "2020-02-11"), ("2020-01-30", "2020-01-30")])
def test_exactly_its_windows(step_len, bounds):
    data = frame()
    calendar = list(data.index.levels[0])
    extended = dataset_module.TSDatasetH._extend_slice(slice(*bounds), calendar, step_len)
    sampler = dataset_module.TSDataSampler(
        data.loc[extended].copy(), *map(pd.Timestamp, bounds), step_len=step_len, fillna_type="ffill+bfill"
    )
    segment = PanelDataset(data, segments={"here": bounds}).windows(step_len).segment("here")
    index = sampler.get_index()
    assert len(index) == len(segment)
    # Qlib lists samples by instrument, then day; here they stand in the order of the panel.
    place = pd.Series(np.arange(len(segment)), index=segment.index).loc[list(index)].to_numpy()
    np.testing.assert_array_equal(place, segment.x.by_instrument())
    expected = np.stack([sampler[i] for i in range(len(sampler))])
    np.testing.assert_array_equal(segment.x[place], expected[:, :, :-1])
    np.testing.assert_array_equal(segment.y[place], expected[:, -1, -1])


def test_a_loader_with_weights_gives_the_same_batches():
    from qlib.model.utils import ConcatDataset

    data, bounds, step_len = frame(), ("2020-01-15", "2020-02-11"), 6
    sampler = dataset_module.TSDataSampler(data.copy(), *map(pd.Timestamp, bounds), step_len=step_len, fillna_type="ffill+bfill")
    weights = np.random.default_rng(0).random(len(sampler)).astype(np.float32)  # in the sampler's order
    segment = PanelDataset(data, segments={"here": bounds}).windows(step_len).segment("here")
    ours = np.empty_like(weights)
    ours[segment.x.by_instrument()] = weights
    loader = torch.utils.data.DataLoader(ConcatDataset(sampler, weights), batch_size=16, shuffle=True, drop_last=True)
    batches = WindowBatches(segment.x, segment.y, batch_size=16, shuffle=True, drop_last=True, weight=ours)
    assert len(batches) == len(loader)
    torch.manual_seed(0)
    theirs = [batch for _ in range(2) for batch in loader]
    torch.manual_seed(0)
    for (x, w), batch in zip(theirs, (batch for _ in range(2) for batch in batches), strict=True):
        np.testing.assert_array_equal(batch.x, x[:, :, :-1])
        np.testing.assert_array_equal(batch.y, x[:, -1, -1])
        np.testing.assert_array_equal(batch.weight, w)
