"""Alpha158: the 158 features of Qlib's handler of this name (Microsoft Qlib, contrib/data/loader.py), from bars: the shapes of the day's
candle, prices over the close, and 29 rolling statistics of price and volume over 5, 10, 20, 30 and 60 days.

Every statistic takes what there is of its window, from an instrument's first day on, as Qlib's do. In one thing they differ: for IMAX,
IMIN and IMXD a day without a row is never the highest or the lowest, where Qlib takes it for both.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch

from alphakernels import ops
from alphakernels.data.finite import finite_rows
from alphakernels.data.wide import Prices, wide_fields
from alphakernels.ops.alpha158 import ALPHA158, FIELDS


def alpha158(prices: Prices, names: Sequence[str] | None = None, *, complete: bool = False) -> pd.DataFrame:
    """Qlib's Alpha158, or some of its features.

    Args:
        prices: a long frame indexed by (datetime, instrument) with the columns open, high, low, close, vwap and volume, or a dict of
            wide frames (days x instruments) of these fields.
        names: features in the order wanted, out of `ALPHA158`; None takes all.
        complete: leave out the rows in which a feature is NaN or infinite.

    Returns:
        float32 frame sorted by (datetime, instrument), a column a feature.

    Raises:
        ValueError: a missing field, an unknown feature, or, with `complete`, no complete row.
    """
    names = ALPHA158 if names is None else tuple(names)
    values, keys = wide_fields(prices, FIELDS)
    bars = torch.stack([torch.from_numpy(values.pop(name)).T for name in FIELDS])  # [6, S, T]
    out = ops.alpha158(bars, torch.from_numpy(keys.instrument), torch.from_numpy(keys.day), names).numpy()
    if complete:
        keep = finite_rows(out)
        if not keep.any():
            raise ValueError(
                f"alpha158: no row has all {len(names)} features; the prices have {len(keys.days)} days: give a longer history"
            )
        if not keep.all():
            out, keys = out[keep], keys.take(keep)
    return pd.DataFrame(out, index=keys.to_pandas(), columns=list(names), copy=False)
