"""torch's own layers on the modules of `alphakernels.nn`, which inherit from them."""

from __future__ import annotations

from torch import nn

from .. import nn as ours
from ._swapped import Swapped, Used


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


class TransformerEncoderLayer(Swapped, ours.TransformerEncoderLayer):
    fast = ours.TransformerEncoderLayer.forward
    memory = "auto"

    def uses(self) -> Used:
        yield "self_attn", self.self_attn, nn.MultiheadAttention
        yield "self_attn.out_proj", self.self_attn.out_proj, nn.Linear
        for name in ("linear1", "linear2"):
            yield name, getattr(self, name), nn.Linear
        for name in ("norm1", "norm2"):
            yield name, getattr(self, name), nn.LayerNorm
        for name in ("dropout", "dropout1", "dropout2"):
            yield name, getattr(self, name), nn.Dropout

    def obstacle(self) -> str | None:
        return self._uncovered(None, None)
