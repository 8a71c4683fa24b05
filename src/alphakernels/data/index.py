"""The one index of this package: (datetime, instrument) keys as sorted days, sorted instruments, and a code each a row.

Codes make what panels need (order, duplicates, the rows of a range of days) integer arithmetic over whole columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

NAMES = ("datetime", "instrument")
SHOWN = 5  # how many offending items an error names


@dataclass(frozen=True)
class PanelIndex:
    """Keys of N rows.

    Attributes:
        days: the T days present, sorted, each once.
        instruments: the instruments present, sorted, each once.
        day: int64 [N], the row's position in `days`.
        instrument: int64 [N], the row's position in `instruments`.
    """

    days: pd.DatetimeIndex
    instruments: pd.Index
    day: np.ndarray
    instrument: np.ndarray

    def __len__(self) -> int:
        return len(self.day)

    def sorting(self) -> np.ndarray | None:
        """The order [N] that sorts the rows by day, then instrument; None where they are sorted.

        Raises:
            ValueError: a key that appears more than once.
        """
        key = self.day * len(self.instruments) + self.instrument
        step = np.diff(key)
        if (step > 0).all():
            return None
        order = None if (step >= 0).all() else np.argsort(key, kind="stable")
        ordered = key if order is None else key[order]
        twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        if twice.size:
            shown = [
                f"({self.days[k // len(self.instruments)]}, {self.instruments[k % len(self.instruments)]})"
                for k in twice[:SHOWN]
            ]
            raise ValueError(
                f"each (datetime, instrument) must have one row, got {twice.size} keys more than once: "
                f"{', '.join(shown)}{', ...' if twice.size > SHOWN else ''}; drop or merge the duplicates"
            )
        return order

    def take(self, rows: np.ndarray | slice) -> PanelIndex:
        """The keys of some rows; days and instruments which no longer appear are left out."""
        return _compact(self.days, self.instruments, self.day[rows], self.instrument[rows])

    def to_pandas(self, rows: slice = slice(None)) -> pd.MultiIndex:
        """The rows' (datetime, instrument) MultiIndex."""
        return pd.MultiIndex(
            levels=[self.days, self.instruments],
            codes=[self.day[rows], self.instrument[rows]],
            names=NAMES,
            verify_integrity=False,
        )

    @classmethod
    def product(cls, days: pd.DatetimeIndex, instruments: pd.Index) -> PanelIndex:
        """Every instrument on every day; `days` and `instruments` are sorted and unique."""
        day = np.repeat(np.arange(len(days)), len(instruments))
        return cls(days, instruments, day, np.tile(np.arange(len(instruments)), len(days)))

    @classmethod
    def from_pandas(cls, index: pd.Index) -> PanelIndex:
        """Reads a two-level index: levels named datetime and instrument in either order, else in this order.

        Raises:
            ValueError: another kind of index, keys with a missing part, or days that are not dates.
        """
        if not isinstance(index, pd.MultiIndex) or index.nlevels != 2:
            raise ValueError(
                f"the index must be a MultiIndex of (datetime, instrument), got {type(index).__name__} with levels "
                f"{list(index.names)}; set_index([date column, instrument column]) makes one"
            )
        names = index.names
        if names[0] == "instrument" or names[1] == "datetime":
            index = index.swaplevel()
        day, instrument = (np.asarray(codes, dtype=np.int64) for codes in index.codes)
        for name, codes in zip(NAMES, (day, instrument), strict=True):
            if (codes < 0).any():
                raise ValueError(
                    f"every row must have a {name}, got {int((codes < 0).sum())} rows without, the first is row "
                    f"{int(np.argmax(codes < 0))}"
                )
        try:
            level = as_days(index.levels[0])
        except ValueError as error:
            raise ValueError(
                f"{error}: the index's levels must be named datetime and instrument, or stand in this order, got {list(names)}; rename "
                "them by rename_axis, or change their order by swaplevel"
            ) from None
        days, day = _sorted_level(level, day)
        instruments, instrument = _sorted_level(index.levels[1], instrument)
        return _compact(days, instruments, day, instrument)


def as_days(values: pd.Index) -> pd.DatetimeIndex:
    """Dates from datetimes or text.

    Raises:
        ValueError: values that are not dates. Numbers are refused: pandas would read 20200102 as nanoseconds.
    """
    if isinstance(values, pd.DatetimeIndex):
        return values
    if not pd.api.types.is_numeric_dtype(values.dtype):
        try:
            return pd.DatetimeIndex(pd.to_datetime(values))
        except (ValueError, TypeError):
            pass
    raise ValueError(f"datetime must hold dates, got {values.dtype} values such as {list(values[:3])}")


def _sorted_level(level: pd.Index, codes: np.ndarray) -> tuple[pd.Index, np.ndarray]:
    """The level sorted and without repeats (two spellings of one date), and the codes that fit it."""
    if level.is_monotonic_increasing and level.is_unique:
        return level, codes
    try:
        position, ordered = pd.factorize(level, sort=True)
    except TypeError:
        kinds = sorted({type(value).__name__ for value in level})
        raise ValueError(f"the values of an index level must sort, got a mixture of {', '.join(kinds)}") from None
    return pd.Index(ordered), position.astype(np.int64)[codes]


def _compact(
    days: pd.DatetimeIndex, instruments: pd.Index, day: np.ndarray, instrument: np.ndarray
) -> PanelIndex:
    """Leaves out the days and instruments which no row has."""
    levels, codes = [], []
    for level, code in ((days, day), (instruments, instrument)):
        present = np.bincount(code, minlength=len(level)) > 0
        if present.all():
            levels.append(level)
            codes.append(code)
        else:
            levels.append(level[present])
            codes.append((np.cumsum(present) - 1)[code])
    return PanelIndex(pd.DatetimeIndex(levels[0]), levels[1], codes[0], codes[1])
