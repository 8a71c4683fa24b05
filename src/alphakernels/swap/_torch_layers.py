"""torch's own layers on the modules of `alphakernels.nn`, which inherit from them."""

from __future__ import annotations

from .. import nn as ours
from ._swapped import Swapped


class _Recurrent(Swapped):
    def obstacle(self) -> str | None:
        if self.bidirectional:
            return "it is bidirectional, the kernels run in one direction only"
        if self.proj_size > 0:
            return f"the kernels have no projections, its proj_size is {self.proj_size}"
        return None


class GRU(_Recurrent, ours.GRU):
    fast = ours.GRU.forward


class LSTM(_Recurrent, ours.LSTM):
    fast = ours.LSTM.forward
