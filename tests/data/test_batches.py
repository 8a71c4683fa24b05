"""Batches of rows: each row once, in Qlib's shuffled order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alphakernels.data import RowBatches


@pytest.fixture
def arrays():
    rng = np.random.default_rng(2)
    return rng.normal(size=(53, 3)).astype(np.float32), rng.normal(size=53).astype(np.float32)


def test_every_row_once_in_order(arrays):
    x, y = arrays
    batches = RowBatches(x, y, batch_size=10)
    assert len(batches) == 6 and batches.n_rows == 53
    seen = list(batches)
    np.testing.assert_array_equal(torch.cat([b.x for b in seen]).numpy(), x)
    np.testing.assert_array_equal(torch.cat([b.y for b in seen]).numpy(), y)
    np.testing.assert_array_equal(np.concatenate([b.rows for b in seen]), np.arange(53))


def test_the_shuffle_is_the_legacy_stream(arrays):
    x, y = arrays
    batches = RowBatches(x, y, batch_size=10, shuffle=np.random.RandomState(7), drop_last=True)
    np.random.seed(7)
    for _ in range(3):
        indices = np.arange(53)
        np.random.shuffle(indices)
        seen = list(batches)
        assert len(seen) == len(batches) == 5
        np.testing.assert_array_equal(np.concatenate([b.rows for b in seen]), indices[:50])
        np.testing.assert_array_equal(torch.cat([b.x for b in seen]).numpy(), x[indices[:50]])


def test_less_than_a_batch_is_not_dropped(arrays):
    x, y = arrays
    assert [len(b.x) for b in RowBatches(x, y, batch_size=64, drop_last=True)] == [53]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda x, y: RowBatches(x, y[:-1], batch_size=4), "y must have one entry a row"),
        (lambda x, y: RowBatches(x, y, batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda x, y: RowBatches(x[:0], y[:0], batch_size=4), "at least one row"),
        (lambda x, y: RowBatches(x.astype(int), y, batch_size=4), "floating point"),
    ],
)
def test_bad_input(arrays, make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make(*arrays)
