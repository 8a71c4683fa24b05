"""Prices as days x instruments, one array a field: what windows and returns slide over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from alphakernels.data.index import SHOWN, PanelIndex, as_days

Prices = pd.DataFrame | Mapping[str, pd.DataFrame]


def field_name(column: object) -> str:
    """The field a column holds: "$Close", as Qlib writes its fields, is "close"."""
    return str(column).lstrip("$").lower()


def wide_fields(prices: Prices, fields: Sequence[str]) -> tuple[dict[str, np.ndarray], PanelIndex]:
    """Each field as float64 [T, S] (NaN where there is no row), and the (day, instrument) keys that have a row.

    Args:
        prices: a long frame indexed by (datetime, instrument) with a column a field, or a dict of wide frames
            (days x instruments), one a field, all with the same days and instruments.
        fields: the wanted fields, in lower case and without "$".

    Raises:
        ValueError: a missing field, frames that differ in shape, or days or instruments that appear twice.
    """
    if isinstance(prices, Mapping):
        return _from_wide({field_name(name): frame for name, frame in prices.items()}, fields)
    if not isinstance(prices, pd.DataFrame):
        raise ValueError(
            f"prices must be a DataFrame indexed by (datetime, instrument), or a dict of wide frames by field, got "
            f"{type(prices).__name__}; a single wide frame of closes is given as {{'close': frame}}"
        )
    columns = {field_name(name): j for j, name in enumerate(prices.columns)}
    _check_fields(fields, columns)
    keys = PanelIndex.from_pandas(prices.index)
    order = keys.sorting()
    values = {}
    for name in fields:
        grid = np.full((len(keys.days), len(keys.instruments)), np.nan)
        column = prices.iloc[:, columns[name]]
        grid[keys.day, keys.instrument] = column.to_numpy(dtype=np.float64, na_value=np.nan)
        values[name] = grid
    return values, keys if order is None else keys.take(order)


def _from_wide(
    frames: Mapping[str, pd.DataFrame], fields: Sequence[str]
) -> tuple[dict[str, np.ndarray], PanelIndex]:
    _check_fields(fields, frames)
    first = frames[fields[0]]
    for name in fields:
        frame = frames[name]
        if not frame.index.equals(first.index) or not frame.columns.equals(first.columns):
            raise ValueError(
                f"the wide frames must share their days and instruments: {name!r} {frame.shape} differs from "
                f"{fields[0]!r} {first.shape}; reindex one like the other"
            )
    days, instruments = check_axes(first)
    by_day, by_name = np.argsort(days, kind="stable"), instruments.argsort()
    values = {name: frames[name].to_numpy(dtype=np.float64)[np.ix_(by_day, by_name)] for name in fields}
    day, instrument = np.nonzero(~np.logical_and.reduce([np.isnan(grid) for grid in values.values()]))
    keys = PanelIndex(days[by_day], instruments[by_name], day, instrument)
    return values, keys


def check_axes(frame: pd.DataFrame) -> tuple[pd.DatetimeIndex, pd.Index]:
    """The days and instruments of a wide frame.

    Raises:
        ValueError: rows that are not dates, or days or instruments that appear twice.
    """
    days = as_days(frame.index)
    for what, axis in (("day", days), ("instrument", frame.columns)):
        if not axis.is_unique:
            twice = list(map(str, axis[axis.duplicated()].unique()[:SHOWN]))
            raise ValueError(f"each {what} of a wide frame must appear once, got more than one of {', '.join(twice)}")
    return days, frame.columns


def _check_fields(fields: Sequence[str], known: Mapping[str, object]) -> None:
    missing = [name for name in fields if name not in known]
    if missing or not fields:
        raise ValueError(f"prices must have the fields {', '.join(missing) or '(none asked)'}, got {', '.join(known)}")
