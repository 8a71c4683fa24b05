"""Named segments: ranges of days, inclusive on both ends, as Qlib writes them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

Bound = str | datetime.date | pd.Timestamp | None


def check_segments(segments: Mapping[str, Any], timezone: Any = None) -> dict[str, tuple[Bound, Bound]]:
    """The segments with their bounds as `segment_days` takes them.

    Raises:
        ValueError: a segment that is not a pair of dates in order; the message names it.
    """
    if not isinstance(segments, Mapping):
        raise ValueError(f"segments must map a name to (start, end), got {type(segments).__name__}")
    checked = {}
    for name, bounds in segments.items():
        if isinstance(bounds, slice):
            bounds = (bounds.start, bounds.stop)
        if isinstance(bounds, (str, bytes)) or not isinstance(bounds, Sequence) or len(bounds) != 2:
            raise ValueError(
                f"segment {name!r} must be (start, end), each a date or None for an open end, got {bounds!r}"
            )
        start, end = (_bound(name, bound, timezone) for bound in bounds)
        if start is not None and end is not None and _moment(start) > _moment(end, last=True):
            raise ValueError(f"segment {name!r} must start no later than it ends, got {bounds[0]} to {bounds[1]}")
        checked[str(name)] = (start, end)
    return checked


def _bound(name: str, bound: Any, timezone: Any) -> Bound:
    """Text stays text and a date becomes text: "2014" as an end means its last day, and pandas reads it so."""
    if isinstance(bound, int) and 1000 <= bound <= 9999:
        bound = str(bound)  # a year, as a configuration file may give it
    if isinstance(bound, datetime.date) and not isinstance(bound, datetime.datetime):
        bound = bound.isoformat()
    if bound is None:
        return None
    try:
        if isinstance(bound, str):
            pd.Period(bound)
            return bound
        if not isinstance(bound, (datetime.datetime, np.datetime64)) or pd.isna(bound):
            raise ValueError
    except ValueError:
        raise ValueError(f"segment {name!r}: a bound must be a date or None, got {bound!r}") from None
    stamp = pd.Timestamp(bound)
    if timezone is None and stamp.tzinfo is not None:
        raise ValueError(f"segment {name!r}: the data's days have no time zone, got the bound {stamp}")
    return stamp.tz_localize(timezone) if timezone is not None and stamp.tzinfo is None else stamp


def _moment(bound: str | datetime.date, last: bool = False) -> pd.Timestamp:
    """The first (or last) moment of a bound, without its time zone."""
    if isinstance(bound, str):
        period = pd.Period(bound)
        return period.end_time if last else period.start_time
    return pd.Timestamp(bound).tz_localize(None)


def segment_days(days: pd.DatetimeIndex, start: Bound, end: Bound, name: str) -> slice:
    """The positions in `days` (sorted) of one segment.

    Raises:
        ValueError: no day lies in the segment; the message prints the range of the days.
    """
    found = days.slice_indexer(start, end)
    if found.start >= found.stop:
        raise ValueError(
            f"segment {name!r} ({_shown(start)} to {_shown(end)}) has no rows: the data runs from "
            f"{days[0]:%Y-%m-%d} to {days[-1]:%Y-%m-%d} ({len(days)} days); choose dates within this range"
        )
    return slice(int(found.start), int(found.stop))


def _shown(bound: Bound) -> str:
    if bound is None:
        return "open"
    return bound if isinstance(bound, str) else str(bound).removesuffix(" 00:00:00")


def split_days(days: pd.DatetimeIndex, shares: Mapping[str, float]) -> dict[str, tuple[pd.Timestamp, pd.Timestamp]]:
    """Consecutive segments that take the given shares of the days, in the order given.

    Args:
        days: the days of the data, sorted, each once.
        shares: share of the days by segment, such as {"train": 0.7, "valid": 0.15, "test": 0.15}; they sum to at
            most 1, and what they leave is the latest days, unused.

    Raises:
        ValueError: shares that are not in (0, 1], that sum to more than 1, or that are too small for one day.
    """
    bad = {name: share for name, share in shares.items() if not 0 < share <= 1}
    if not shares or bad or sum(shares.values()) > 1 + 1e-9:
        raise ValueError(f"the segments' shares must each lie in (0, 1] and sum to at most 1, got {dict(shares)}")
    segments, start, total = {}, 0, 0.0
    for name, share in shares.items():
        total += share
        stop = min(len(days), round(total * len(days)))
        if stop <= start:
            raise ValueError(f"segment {name!r}: a share of {share} of {len(days)} days is less than one day")
        segments[name] = (days[start], days[stop - 1])
        start = stop
    return segments
