"""alpha158: the 158 features of Qlib's handler of this name, of every instrument and day in one call. It makes features out of data and
has no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._near import hint
from .. import _backend, _checks
from .._library import define
from . import reference

ALPHA158 = reference.NAMES
FIELDS = reference.FIELDS
_PLACE = {name: place for place, name in enumerate(ALPHA158)}

OP = define(
    "alpha158",
    "(Tensor bars, Tensor instrument, Tensor day, Tensor features) -> Tensor",
    fake=lambda bars, instrument, day, features: bars.new_empty(day.shape[0], features.shape[0], dtype=torch.float32),
    cpp_dtypes=(torch.float64,),
)


def alpha158(bars: Tensor, instrument: Tensor, day: Tensor, names: Sequence[str] = ALPHA158) -> Tensor:
    """Features of some days of some instruments, computed in float64.

    Args:
        bars: [6, S, T] floating point: `FIELDS` (open, high, low, close, vwap, volume) of S instruments on T days, NaN where there is none.
        instrument: int64 [N], the instrument of each row of the result.
        day: int64 [N], its day. Each pair once.
        names: F of `ALPHA158`, in the order wanted.

    Returns:
        float32 [N, F]. A statistic takes what there is of its window; what is not a finite number is no part of it.

    Raises:
        TypeError, ValueError: wrong dtype, rank or shapes, places outside of the bars, an unknown name.
        RuntimeError: a pair that comes twice, of which the kernel would fill but one row.

    Source: Microsoft Qlib, contrib/data/loader.py (Alpha158DL).
    """
    op = "alpha158"
    _checks.require_float(op, "bars", bars)
    _checks.require_rank(op, "bars", bars, 3, "[6, S, T]")
    _checks.require(bars.shape[0] == len(FIELDS), op, "bars", "of shape [6, S, T]", list(bars.shape))
    for what, places, limit in (("instrument", instrument, bars.shape[1]), ("day", day, bars.shape[2])):
        _checks.require(places.dtype == torch.int64, op, what, "of dtype torch.int64", places.dtype, TypeError)
        _checks.require(places.shape == (len(day),), op, what, f"of shape [{len(day)}]", list(places.shape))
        if len(places):
            low, high = (int(end) for end in places.aminmax())
            _checks.require(0 <= low and high < limit, op, what, f"in [0, {limit})", low if low < 0 else high)
    for name in names:
        if name not in _PLACE:
            raise ValueError(f"alpha158: unknown feature {name!r}{hint(name, ALPHA158)}")
    features = torch.tensor([_PLACE[name] for name in names], dtype=torch.int64)
    bars = bars.detach().double()
    return _backend.run(OP, reference.alpha158, bars, bars, instrument, day, features)
