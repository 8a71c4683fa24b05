"""What the parity tests against Qlib share. Only the test files import Qlib; they are skipped where it is not installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pandas as pd
import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def reproducible(one_thread) -> None:
    """Qlib's sums depend on the number of threads; ours do not."""


@pytest.fixture
def lively() -> Callable[[nn.Module, nn.Module], None]:
    """A function that gives two modules of the same state_dict the same weights and statistics, none of them one or zero."""

    def fill(one: nn.Module, other: nn.Module) -> None:
        generator = torch.Generator().manual_seed(5)
        state = one.state_dict()
        for name, t in state.items():
            if name.endswith(("bn.weight", "running_var")):
                t.copy_(0.5 + torch.rand(t.shape, generator=generator))
            elif name.endswith(("bias", "running_mean")):
                t.copy_(0.3 * torch.randn(t.shape, generator=generator))
        other.load_state_dict(state)

    return fill


@pytest.fixture
def in_float64() -> Callable[[bool], AbstractContextManager[None]]:
    """A context in which networks are made in float64 and take what float32 they are given in float64.

    Both trainings hand their networks float32 rows; exact sums need the rest in float64.
    """

    @contextmanager
    def context(on: bool = True) -> Iterator[None]:
        if not on:
            yield
            return
        torch.set_default_dtype(torch.float64)
        hook = nn.modules.module.register_module_forward_pre_hook(
            lambda module, inputs: tuple(t.double() if torch.is_tensor(t) and t.is_floating_point() else t for t in inputs)
        )
        try:
            yield
        finally:
            hook.remove()
            torch.set_default_dtype(torch.float32)

    return context


class _RowsOfQlib:
    def __init__(self, table: pd.DataFrame, segments: dict[str, tuple[str, str]]) -> None:
        self.table, self.segments = table, segments

    def prepare(self, segments, col_set, data_key=None):
        if not isinstance(segments, str):
            return [self.prepare(segment, col_set, data_key) for segment in segments]
        return self.table.loc[slice(*self.segments[segments]), col_set].copy()


@pytest.fixture
def rows_of_qlib() -> type[_RowsOfQlib]:
    """What Qlib's in-memory models ask of a DatasetH: rows_of_qlib(frame, segments)."""
    return _RowsOfQlib
