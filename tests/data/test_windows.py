"""Windows against a slow oracle: the days of the panel, ffill, then bfill, of whole rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from alphakernels.data import DayBatches, PanelDataset, RowBatches, WindowBatches, Windows
from alphakernels.data.windows import Histories


def panel(seed=0, days=23, instruments=7, missing=0.3, segments=None):
    """An instrument that starts late, one that stops early, one with a single row, and rows missing at random."""
    rng = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product([pd.bdate_range("2020-01-01", periods=days), list("ABCDEFGHIJ")[:instruments]])
    keep = rng.random(len(index)) >= missing
    day, name = index.codes
    keep &= ~((name == 0) & (day < 9)) & ~((name == 1) & (day > 11)) & ((name != 2) | (day == 13))
    frame = pd.DataFrame(rng.normal(size=(len(index), 4)).astype(np.float32), index=index, columns=[*"abc", "label"])
    frame = frame[keep].sample(frac=1, random_state=seed)
    frame.index.names = ["datetime", "instrument"]
    return PanelDataset(frame, segments=segments or {"train": (None, "2020-01-14"), "test": ("2020-01-15", None)})


def oracle(dataset, segment, step_len):
    """Which rows of the segment's panel stand in each window, one instrument at a time."""
    rows = pd.Series(np.arange(len(dataset)), index=dataset.index).unstack()  # days x instruments
    found = []
    for day, name in dataset.segment(segment).index:
        window = rows[name].loc[:day].iloc[-step_len:]
        window = pd.Series([np.nan] * (step_len - len(window)) + list(window))
        found.append(window.ffill().bfill().to_numpy(dtype=np.int64))
    return np.array(found)


@pytest.mark.parametrize("step_len", [1, 2, 5, 40])
@pytest.mark.parametrize("segment", ["train", "test"])
def test_windows_are_the_oracles(step_len, segment):
    dataset = panel()
    windows = dataset.windows(step_len).segment(segment).x
    expected = dataset.x[oracle(dataset, segment, step_len)]
    assert windows.shape == expected.shape
    np.testing.assert_array_equal(windows[:], expected)
    some = np.random.default_rng(1).integers(0, len(windows), 11)
    np.testing.assert_array_equal(windows[some], expected[some])
    assert len(windows.source) <= len(dataset.x)
    assert np.shares_memory(windows.source, dataset.x)


def test_without_gaps_a_window_is_the_last_days():
    x = np.arange(6 * 3 * 2, dtype=np.float32).reshape(6, 3, 2)
    dataset = PanelDataset.from_arrays(x, days=pd.bdate_range("2020", periods=6), instruments=list("abc"))
    windows = dataset.windows(4).segment((None, None)).x
    for day in range(3, 6):
        np.testing.assert_array_equal(windows[3 * day : 3 * day + 3], x[day - 3 : day + 1].swapaxes(0, 1))


def test_nan_within_a_row_stays():
    dataset = panel()
    dataset.x[::3, 1] = np.nan
    windows = dataset.windows(5).segment("test").x
    np.testing.assert_array_equal(windows[:], dataset.x[oracle(dataset, "test", 5)])
    assert np.isnan(windows[:]).any()


def test_eight_bytes_a_row():
    dataset = panel(missing=0.0)
    histories = Histories.of(dataset.panel_index)
    assert histories.order.nbytes + histories.rank.nbytes == 8 * len(dataset)


def test_other_features_for_the_same_windows():
    segment = panel().windows(6).segment("test")
    doubled = segment.x.with_source(2 * segment.x.source)
    np.testing.assert_array_equal(doubled[:], 2 * segment.x[:])


def test_batches_of_windows():
    segment = panel().windows(5).segment("test")
    weight = np.random.default_rng(3).random(len(segment)).astype(np.float32)
    batches = WindowBatches(segment.x, segment.y, batch_size=8, weight=weight, extras={"n": np.arange(len(segment))})
    seen = list(batches)
    assert len(seen) == len(batches)
    listed = np.lexsort(segment.index.codes)  # by instrument, then day
    np.testing.assert_array_equal(np.concatenate([b.rows for b in seen]), listed)
    np.testing.assert_array_equal(torch.cat([b.x for b in seen]).numpy(), segment.x[listed])
    np.testing.assert_array_equal(torch.cat([b.y for b in seen]).numpy(), segment.y[listed])
    np.testing.assert_array_equal(torch.cat([b.weight for b in seen]).numpy(), weight[listed])
    np.testing.assert_array_equal(torch.cat([b.extras["n"] for b in seen]).numpy(), listed)
    with pytest.raises(TypeError, match="x must be Windows"):
        WindowBatches(segment.y[:, None], segment.y, batch_size=3)
    with pytest.raises(ValueError, match="y must have one entry a row of x, whose shape is"):
        WindowBatches(segment.x, segment.y[1:], batch_size=3)


def test_batches_shuffle_as_a_dataloader():
    segment = panel().windows(5).segment("test")
    listed = np.lexsort(segment.index.codes)  # by instrument, then day
    loader = torch.utils.data.DataLoader(listed, batch_size=8, shuffle=True, drop_last=True)
    still = torch.utils.data.DataLoader(listed, batch_size=8)
    batches = WindowBatches(segment.x, segment.y, batch_size=8, shuffle=True, drop_last=True)
    evaluated = WindowBatches(segment.x, segment.y, batch_size=8)
    for one, other in ((batches, loader), (evaluated, still)):
        torch.manual_seed(4)
        expected = [batch.numpy() for _ in range(3) for batch in other]
        drawn = torch.rand(3)
        torch.manual_seed(4)
        got = [batch for _ in range(3) for batch in one]
        assert torch.equal(torch.rand(3), drawn)
        np.testing.assert_array_equal(np.concatenate([b.rows for b in got]), np.concatenate(expected))
        for batch in got:
            np.testing.assert_array_equal(batch.x.numpy(), segment.x[batch.rows])


def test_batches_in_order_draw_what_shuffled_ones_draw():
    segment = panel().windows(5).segment("test")
    drawn = []
    for in_order in (False, True):
        batches = WindowBatches(segment.x, segment.y, batch_size=8, shuffle=True, in_order=in_order)
        torch.manual_seed(4)
        rows = np.concatenate([batch.rows for _ in range(2) for batch in batches])
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)
    np.testing.assert_array_equal(rows, np.tile(np.lexsort(segment.index.codes), 2))


@pytest.mark.parametrize("of", ["rows", "windows"])
def test_a_batch_a_day(of):
    dataset = panel()
    segment = (dataset if of == "rows" else dataset.windows(3)).segment("test")
    day = np.array(segment.index.codes[0])
    batches = DayBatches(segment.x, segment.y, day=day)
    assert len(batches) == len(np.unique(day))
    for number, batch in zip(np.unique(day), batches, strict=True):
        np.testing.assert_array_equal(batch.rows, np.flatnonzero(day == number))
        np.testing.assert_array_equal(batch.x.numpy(), segment.x[batch.rows])
        assert batch.offsets.tolist() == [0, len(batch.rows)]
        assert batch.weight is None


def test_days_in_the_legacy_streams_order():
    segment = panel().segment("test")
    day = np.array(segment.index.codes[0])
    count = np.unique(day, return_counts=True)[1]
    batches = DayBatches(segment.x, segment.y, day=day, shuffle=np.random.RandomState(3))
    np.random.seed(3)
    for _ in range(2):
        days = list(zip(np.r_[0, np.cumsum(count)[:-1]], count, strict=True))
        np.random.shuffle(days)
        expected = [np.arange(begin, begin + n) for begin, n in days]
        for rows, batch in zip(expected, batches, strict=True):
            np.testing.assert_array_equal(batch.rows, rows)


def test_several_days_a_batch_count_alike():
    segment = panel().segment("test")
    y = segment.y.copy()
    day = np.array(segment.index.codes[0])
    y[day == day[0]] = np.nan  # a day without label
    y[::7] = np.nan
    weight = np.random.default_rng(0).random(len(y)).astype(np.float32)
    mixed = np.random.default_rng(1).permutation(len(y))
    for order in (np.arange(len(y)), mixed):
        rows = DayBatches(segment.x[order], y[order], day=day[order], days_per_batch=4, shuffle=np.random.RandomState(0))
        weighted = DayBatches(
            segment.x[order], y[order], day=day[order], days_per_batch=4, shuffle=np.random.RandomState(0), weight=weight[order]
        )
        assert sorted(np.concatenate([b.rows for b in weighted])) == list(range(len(y)))
        list(rows)  # so that both have made one pass
        for batch, other in zip(rows, weighted, strict=True):
            np.testing.assert_array_equal(batch.x.numpy(), segment.x[order][batch.rows])
            labelled = torch.isfinite(batch.y)
            mean = (batch.weight * batch.y)[labelled].sum() / labelled.sum()
            pieces = [slice(a, b) for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)]
            days = [batch.y[piece][labelled[piece]] for piece in pieces]
            assert all(len(np.unique(day[order][batch.rows[piece]])) == 1 for piece in pieces)
            expected = torch.stack([values.mean() for values in days if len(values)]).mean()
            torch.testing.assert_close(mean, expected)
            torch.testing.assert_close(other.weight, batch.weight * torch.from_numpy(weight[order][batch.rows]))


def test_bad_arguments():
    dataset = panel()
    segment = dataset.segment("test")
    for wrong in (0, 2.5, "a", True):
        with pytest.raises(ValueError, match=f"step_len must be an integer of at least 1, got {wrong!r}"):
            dataset.windows(wrong)
    assert dataset.windows(np.int64(3)).step_len == 3
    with pytest.raises(ValueError, match="days_per_batch must be at least 1, got 0"):
        DayBatches(segment.x, day=np.zeros(len(segment)), days_per_batch=0)
    with pytest.raises(ValueError, match="day must have one entry a row of x"):
        DayBatches(segment.x, day=np.zeros(3))
    with pytest.raises(ValueError, match="no segment 'valid'"):
        dataset.windows(3).segment("valid")
    with pytest.raises(TypeError, match="weight must be floating point"):
        RowBatches(segment.x, batch_size=3, weight=np.ones(len(segment), dtype=int))


def test_windows_of_other_segments():
    dataset = panel().windows(4)
    other = dataset.with_segments(late=("2020-01-20", None))
    assert list(other.segments) == ["late"]
    expected = dataset.segment(("2020-01-20", None))
    np.testing.assert_array_equal(other.segment("late").x[:], expected.x[:])
    assert isinstance(expected.x, Windows)
    assert "windows of 4 days" in repr(other)
    assert len(other) == len(other.panel)


def test_what_is_left_out_are_the_last_of_the_samplers_order():
    index = pd.MultiIndex.from_product([pd.bdate_range("2020-01-01", periods=7), list("abc")], names=["datetime", "instrument"])
    x = np.arange(21, dtype=np.float32)[:, None]
    panel = PanelDataset.from_arrays(x, x[:, 0], index=index, segments={"all": (None, None)})
    segment = panel.windows(2).segment("all")
    batches = list(WindowBatches(segment.x, segment.y, batch_size=4, drop_last=True))
    rows = np.concatenate([batch.rows for batch in batches])
    np.testing.assert_array_equal(rows, segment.x.by_instrument()[:20])
    for batch in batches:  # features and labels of the same rows
        np.testing.assert_array_equal(batch.x[:, -1, 0], batch.rows)
        np.testing.assert_array_equal(batch.y, batch.rows)


def test_chosen_windows_keep_their_history():
    dataset = panel()
    whole = dataset.windows(5).segment("test")
    rows = np.flatnonzero(np.random.default_rng(2).random(len(whole)) < 0.4)
    some = whole.chosen(rows)
    assert len(some) == len(rows) and some.index.equals(whole.index[rows])
    np.testing.assert_array_equal(some.y, whole.y[rows])
    np.testing.assert_array_equal(some.x[:], whole.x[:][rows])
    np.testing.assert_array_equal(some.x.reach()[:], some.x[:])
    np.testing.assert_array_equal(some.x.with_source(2 * some.x.source)[:], 2 * some.x[:])
    order = some.x.by_instrument()
    assert sorted(order) == list(range(len(rows)))
    assert list(some.index[order]) == sorted(some.index, key=lambda row: (row[1], row[0]))
    (batch,) = WindowBatches(some.x, some.y, batch_size=1000)
    np.testing.assert_array_equal(batch.x, some.x[order])
    rows_alone = dataset.segment("test").chosen(rows)
    np.testing.assert_array_equal(rows_alone.x, dataset.segment("test").x[rows])
