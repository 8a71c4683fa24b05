"""Alpha158 in plain PyTorch: every window laid out, and its statistic taken as it is defined.

A value that is not a finite number is no part of a window; a statistic takes what there is of its window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOWS = (5, 10, 20, 30, 60)
FIELDS = ("open", "high", "low", "close", "vwap", "volume")
EPS = 1e-12
# Where a window's deviation is below, its correlation and R² are not known, as in Qlib.
FLAT = 2e-5
CHUNK = 1 << 22  # values of all windows looked at in one go
NAN = torch.nan


class Bars:
    """The fields of some instruments, and what several features share: [S, T]."""

    def __init__(self, fields: Tensor) -> None:
        self.open, self.high, self.low, self.close, self.vwap, self.volume = fields
        there = ~self.close.isnan()
        self.begun = there.cummax(dim=1).values
        day = torch.arange(there.shape[1], device=there.device)
        self.since = day - (~self.begun).sum(dim=1, keepdim=True)  # days since the instrument's first
        self._lines: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    @cached_property
    def change(self) -> Tensor:
        return self.close - before(self.close)

    @cached_property
    def traded(self) -> Tensor:
        return self.volume - before(self.volume)

    @cached_property
    def weighted(self) -> Tensor:
        """The volume times the size of the return."""
        return (self.close / before(self.close) - 1).abs() * self.volume

    @cached_property
    def logs(self) -> tuple[Tensor, Tensor, Tensor]:
        """log(volume + 1), the close over the one before, log of the same of the volume, plus one."""
        return (self.volume + 1).log(), self.close / before(self.close), (self.volume / before(self.volume) + 1).log()

    def share(self, holds: Tensor, days: int) -> Tensor:
        """Of the days since the instrument's first, on how many something holds."""
        return mean(torch.where(self.begun, holds.to(self.close.dtype), NAN), days)

    def line(self, days: int) -> tuple[Tensor, Tensor, Tensor]:
        """Slope, R² and the last day's residual of the close's regression on time."""
        if days not in self._lines:
            self._lines[days] = regression(self.close, days)
        return self._lines[days]

    def place(self, values: Tensor, days: int) -> Tensor:
        """The place of the first largest value within its window, from 1; the window begins with the instrument."""
        found = windows(values, days).nan_to_num(nan=-torch.inf)
        place = torch.arange(values.shape[1], device=values.device) - (days - 1) + found.argmax(dim=2)
        began = torch.arange(values.shape[1], device=values.device) - torch.clamp(self.since, max=days - 1)
        return torch.where(found.amax(dim=2).isinf(), NAN, (place - began + 1).to(values.dtype))


def before(values: Tensor, days: int = 1) -> Tensor:
    return F.pad(values, (days, 0), value=NAN)[:, : values.shape[1]]


def windows(values: Tensor, days: int) -> Tensor:
    """[S, T, days], NaN before the first day and for what is no number."""
    known = torch.where(values.isfinite(), values, NAN)
    return F.pad(known, (days - 1, 0), value=NAN).unfold(1, days, 1)


def total(values: Tensor, days: int) -> Tensor:
    window = windows(values, days)
    return torch.where(window.isnan().all(dim=2), NAN, window.nansum(dim=2))


def mean(values: Tensor, days: int) -> Tensor:
    return windows(values, days).nanmean(dim=2)


def deviations(window: Tensor) -> tuple[Tensor, Tensor]:
    """What is there less its mean, 0 elsewhere; and how many there are. In two steps, so that a constant window deviates by nothing."""
    there = ~window.isnan()
    n = there.sum(dim=2)
    least = torch.where(there, window, torch.inf).amin(dim=2, keepdim=True)
    above = torch.where(there, window - least, 0.0)
    return torch.where(there, above - above.sum(dim=2, keepdim=True) / n[..., None], 0.0), n


def deviation(values: Tensor, days: int) -> Tensor:
    y, n = deviations(windows(values, days))
    return (y.square().sum(dim=2) / (n - 1)).sqrt() + torch.where(n < 2, NAN, 0.0)


def largest(values: Tensor, days: int) -> Tensor:
    found = windows(values, days).nan_to_num(nan=-torch.inf).amax(dim=2)
    return torch.where(found.isinf(), NAN, found)


def quantile(values: Tensor, days: int, share: float) -> Tensor:
    """Between the two nearest values, in proportion."""
    window = windows(values, days)
    n = (~window.isnan()).sum(dim=2)
    ordered = window.nan_to_num(nan=torch.inf).sort(dim=2).values
    place = share * (n - 1).clamp(min=0).to(values.dtype)
    low = place.long()
    at, after = (ordered.gather(2, i[..., None])[..., 0] for i in (low, torch.minimum(low + 1, (n - 1).clamp(min=0))))
    return torch.where(n > 0, at + (after - at) * (place - low), NAN)


def rank(values: Tensor, days: int) -> Tensor:
    """The average rank of the last value among those of its window, as a share of them."""
    window = windows(values, days)
    last = window[..., -1:]
    smaller, equal, n = ((f).sum(dim=2) for f in (window < last, window == last, ~window.isnan()))
    return torch.where(last[..., 0].isnan(), NAN, (smaller + 0.5 * (equal + 1)) / n)


def regression(values: Tensor, days: int) -> tuple[Tensor, Tensor, Tensor]:
    window = windows(values, days)
    y, n = deviations(window)
    there = (~window.isnan()).to(values.dtype)
    x = torch.arange(1 - days, 1, dtype=values.dtype, device=values.device)  # today is 0
    middle = (there * x).sum(dim=2) / n
    x = there * (x - middle[..., None])
    xx, xy, yy = (x * x).sum(dim=2), (x * y).sum(dim=2), (y * y).sum(dim=2)
    slope = xy / xx
    squared = torch.where(flat(values, days), NAN, xy * xy / (xx * yy))
    return slope, squared, torch.where(window[..., -1].isnan(), NAN, y[..., -1] + slope * middle)


def flat(values: Tensor, days: int) -> Tensor:
    return deviation(values, days) <= FLAT


def correlation(left: Tensor, right: Tensor, days: int) -> Tensor:
    both = left.isfinite() & right.isfinite()
    (a, _), (b, _) = (deviations(windows(torch.where(both, side, NAN), days)) for side in (left, right))
    found = (a * b).sum(dim=2) / (a.square().sum(dim=2) * b.square().sum(dim=2)).sqrt()
    return torch.where(flat(left, days) | flat(right, days), NAN, found)


def gains(change: Tensor, days: int, up: float, down: float) -> Tensor:
    """Sums of the gains and of the losses, over that of both."""
    won, lost = total(change.clamp(min=0), days), total((-change).clamp(min=0), days)
    return (up * won + down * lost) / (won + lost + EPS)


Feature = Callable[[Bars], Tensor]
SPOT: dict[str, Feature] = {
    "KMID": lambda b: (b.close - b.open) / b.open,
    "KLEN": lambda b: (b.high - b.low) / b.open,
    "KMID2": lambda b: (b.close - b.open) / (b.high - b.low + EPS),
    "KUP": lambda b: (b.high - torch.maximum(b.open, b.close)) / b.open,
    "KUP2": lambda b: (b.high - torch.maximum(b.open, b.close)) / (b.high - b.low + EPS),
    "KLOW": lambda b: (torch.minimum(b.open, b.close) - b.low) / b.open,
    "KLOW2": lambda b: (torch.minimum(b.open, b.close) - b.low) / (b.high - b.low + EPS),
    "KSFT": lambda b: (2 * b.close - b.high - b.low) / b.open,
    "KSFT2": lambda b: (2 * b.close - b.high - b.low) / (b.high - b.low + EPS),
    "OPEN0": lambda b: b.open / b.close,
    "HIGH0": lambda b: b.high / b.close,
    "LOW0": lambda b: b.low / b.close,
    "VWAP0": lambda b: b.vwap / b.close,
}
ROLLING: dict[str, Callable[[Bars, int], Tensor]] = {
    "ROC": lambda b, d: before(b.close, d) / b.close,
    "MA": lambda b, d: mean(b.close, d) / b.close,
    "STD": lambda b, d: deviation(b.close, d) / b.close,
    "BETA": lambda b, d: b.line(d)[0] / b.close,
    "RSQR": lambda b, d: b.line(d)[1],
    "RESI": lambda b, d: b.line(d)[2] / b.close,
    "MAX": lambda b, d: largest(b.high, d) / b.close,
    "MIN": lambda b, d: -largest(-b.low, d) / b.close,
    "QTLU": lambda b, d: quantile(b.close, d, 0.8) / b.close,
    "QTLD": lambda b, d: quantile(b.close, d, 0.2) / b.close,
    "RANK": lambda b, d: rank(b.close, d),
    "RSV": lambda b, d: (b.close + (low := largest(-b.low, d))) / (largest(b.high, d) + low + EPS),
    "IMAX": lambda b, d: b.place(b.high, d) / d,
    "IMIN": lambda b, d: b.place(-b.low, d) / d,
    "IMXD": lambda b, d: (b.place(b.high, d) - b.place(-b.low, d)) / d,
    "CORR": lambda b, d: correlation(b.close, b.logs[0], d),
    "CORD": lambda b, d: correlation(b.logs[1], b.logs[2], d),
    "CNTP": lambda b, d: b.share(b.change > 0, d),
    "CNTN": lambda b, d: b.share(b.change < 0, d),
    "CNTD": lambda b, d: b.share(b.change > 0, d) - b.share(b.change < 0, d),
    "SUMP": lambda b, d: gains(b.change, d, 1, 0),
    "SUMN": lambda b, d: gains(b.change, d, 0, 1),
    "SUMD": lambda b, d: gains(b.change, d, 1, -1),
    "VMA": lambda b, d: mean(b.volume, d) / (b.volume + EPS),
    "VSTD": lambda b, d: deviation(b.volume, d) / (b.volume + EPS),
    "WVMA": lambda b, d: deviation(b.weighted, d) / (mean(b.weighted, d) + EPS),
    "VSUMP": lambda b, d: gains(b.traded, d, 1, 0),
    "VSUMN": lambda b, d: gains(b.traded, d, 0, 1),
    "VSUMD": lambda b, d: gains(b.traded, d, 1, -1),
}
FEATURES: dict[str, Feature] = SPOT | {
    f"{name}{days}": lambda bars, make=make, days=days: make(bars, days) for name, make in ROLLING.items() for days in WINDOWS
}
NAMES = tuple(FEATURES)


def alpha158(bars: Tensor, instrument: Tensor, day: Tensor, features: Sequence[int] | Tensor) -> Tensor:
    """float32 [N, F] from bars [6, S, T], piece by piece of the instruments."""
    _, instruments, days = bars.shape
    out = torch.empty(len(day), len(features), dtype=torch.float32, device=bars.device)
    step = max(1, CHUNK // (WINDOWS[-1] * max(1, days)))
    for start in range(0, instruments, step):
        piece = Bars(bars[:, start : start + step])
        (rows,) = torch.nonzero((instrument >= start) & (instrument < start + step), as_tuple=True)
        s, t = instrument[rows] - start, day[rows]
        for j, feature in enumerate(features):
            out[rows, j] = FEATURES[NAMES[feature]](piece)[s, t].float()
    return out
