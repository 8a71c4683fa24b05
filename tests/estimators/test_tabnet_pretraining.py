"""Masked reconstruction: the masks' stream, the two losses, and what a short batch does."""

from __future__ import annotations

import pytest
import torch

from alphakernels.data import RowBatches
from alphakernels.estimators._tabnet_pretraining import (
    TailJoined,
    draw_hidden,
    draw_hidden_for_evaluation,
    reconstruction_loss,
)


def test_masks_come_from_the_global_stream():
    torch.manual_seed(3)
    expected = torch.bernoulli(torch.empty(9, 4).fill_(0.3))
    torch.manual_seed(3)
    assert torch.equal(draw_hidden(9, 4, 0.3), expected)


@pytest.mark.parametrize("rows", [3, 8, 11])
def test_rows_beyond_a_full_batch_leave_the_stream_alone(rows):
    torch.manual_seed(3)
    expected = [draw_hidden(8, 4, 0.5)] if rows >= 8 else []
    after = torch.rand(5)
    torch.manual_seed(3)
    mask = draw_hidden_for_evaluation(rows, 4, 0.5, batch_size=8)
    assert torch.equal(torch.rand(5), after)
    assert mask.shape == (rows, 4)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    for full in expected:
        assert torch.equal(mask[:8], full)


@pytest.mark.parametrize(("variant", "of_data"), [("qlib", False), ("paper", True)])
def test_loss_divides_by_the_right_spread(variant, of_data):
    torch.manual_seed(0)
    x, reconstruction = torch.randn(21, 4, dtype=torch.float64), torch.randn(21, 4, dtype=torch.float64)
    hidden = torch.bernoulli(torch.full((21, 4), 0.4, dtype=torch.float64))
    of = x if of_data else reconstruction
    expected = sum(
        ((x[b, j] - reconstruction[b, j]) * hidden[b, j]) ** 2 / (of[:, j].var(correction=0) * 21)
        for b in range(21)
        for j in range(4)
    )
    torch.testing.assert_close(reconstruction_loss(x, hidden, reconstruction, variant), expected)


@pytest.mark.parametrize("variant", ["qlib", "paper"])
@pytest.mark.parametrize("rows", [1, 7])
def test_constant_columns_do_not_divide_by_zero(variant, rows):
    x = torch.full((rows, 2), 0.1)
    reconstruction = torch.full((rows, 2), 0.3, requires_grad=True)
    loss = reconstruction_loss(x, torch.ones_like(x), reconstruction, variant)
    loss.backward()
    assert loss.item() == pytest.approx(rows * 2 * 0.04, rel=1e-4)
    assert torch.isfinite(reconstruction.grad).all()


@pytest.mark.parametrize(("rows", "sizes"), [(3, [3]), (8, [8]), (11, [11]), (16, [8, 8]), (25, [8, 8, 9])])
def test_a_short_last_batch_joins_the_one_before(rows, sizes):
    x = torch.randn(rows, 2)
    batches = TailJoined(RowBatches(x, batch_size=8))
    assert len(batches) == len(sizes)
    for _ in range(2):
        got = list(batches)
        assert [len(batch.rows) for batch in got] == sizes
        assert torch.equal(torch.cat([batch.x for batch in got]), x)
    assert len(TailJoined(RowBatches(x, batch_size=8, drop_last=True))) == max(rows // 8, 1)
