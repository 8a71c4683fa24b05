"""Early stopping: what counts as better, and when it is enough."""

from __future__ import annotations

import math

import pytest

from alphakernels.training import EarlyStopping


def epochs_until_stop(stopper, values):
    for epoch, value in enumerate(values):
        stopper.update(epoch, value)
        if stopper.should_stop:
            return epoch + 1
    return None


def test_an_improvement_resets_the_count():
    assert epochs_until_stop(EarlyStopping(2), [3, 4, 2, 3, 1, 2, 2]) == 7
    stopper = EarlyStopping(2)
    epochs_until_stop(stopper, [3, 4, 2, 3, 1, 2, 2])
    assert (stopper.best_epoch, stopper.best_value) == (4, 1)


def test_cumulative_never_resets():
    assert epochs_until_stop(EarlyStopping(2, cumulative=True), [3, 4, 2, 3, 1, 2, 2]) == 4


def test_max_mode_equal_values_and_nan_are_no_improvement():
    stopper = EarlyStopping(3, "max")
    assert [stopper.update(e, v) for e, v in enumerate([-1.0, -1.0, math.nan, -2.0])] == [
        True,
        False,
        False,
        False,
    ]
    assert stopper.should_stop


def test_no_patience_never_stops():
    assert epochs_until_stop(EarlyStopping(None), [1] * 50) is None


def test_state_goes_through_a_dict():
    one, other = EarlyStopping(3), EarlyStopping(3)
    for epoch, value in enumerate([2.0, 1.0, 5.0]):
        one.update(epoch, value)
    other.load_state_dict(one.state_dict())
    assert (
        other.state_dict() == one.state_dict() == {"best_value": 1.0, "best_epoch": 1, "epochs_without_improvement": 1}
    )


def test_bad_arguments():
    with pytest.raises(ValueError, match="mode must be 'min' or 'max', got 'up'"):
        EarlyStopping(1, "up")
    with pytest.raises(ValueError, match="patience must be at least 1 or None, got 0"):
        EarlyStopping(0)
