"""Qlib's sequence and graph networks. What they are made of is swapped by its own rules; these take what lies between: the last state
of a recurrence without the states before it, ALSTM's attention, the graph of a day, SFM's loop over time, LocalFormer's convolution.

The originals take rows [N, F * T] or, those of Qlib's `_ts` files, windows [N, T, F]; a rule knows which by the file. Of one row their
output is 0-d.
"""

from __future__ import annotations

from torch import Tensor, nn

from .. import models
from .. import nn as ours
from ._swapped import Swapped, Used


class _Rows:
    def days(self, x: Tensor) -> Tensor:
        """[N, T, F] as the original makes it of rows."""
        return x.reshape(len(x), self.d_feat, -1).permute(0, 2, 1)


class _Windows:
    def days(self, x: Tensor) -> Tensor:
        return x


class _LastState(Swapped):
    def uses(self) -> Used:
        return (("rnn", self.rnn, Swapped),)

    def fast(self, x: Tensor) -> Tensor:
        return self.fc_out(self.rnn.last(self.days(x))).squeeze()


class LastState(_Rows, _LastState):
    """GRUModel and LSTMModel."""


class LastStateOfWindows(_Windows, _LastState):
    pass


class _ALSTMModel(Swapped):
    @property
    def d_feat(self) -> int:
        return self.input_size

    def uses(self) -> Used:
        for part, kinds in (
            ("net", (nn.Linear, nn.Tanh)),
            ("att_net", (nn.Linear, nn.Dropout, nn.Tanh, nn.Linear, nn.Softmax)),
        ):
            sequential = getattr(self, part)
            yield part, sequential, nn.Sequential
            for (name, child), kind in zip(sequential.named_children(), kinds, strict=True):
                yield f"{part}.{name}", child, kind

    def fast(self, inputs: Tensor) -> Tensor:
        hidden, _ = self.rnn(ours.LinearTanh.forward(self.net, self.days(inputs)))  # [N, T, H]
        return self.fc_out(ours.AttentionPool.forward(self.att_net, hidden))[..., 0]


class ALSTMModel(_Rows, _ALSTMModel):
    pass


class ALSTMModelOfWindows(_Windows, _ALSTMModel):
    pass


class _GATModel(Swapped, models.GATsNet):
    def uses(self) -> Used:
        return ("rnn", self.rnn, Swapped), ("transformation", self.transformation, nn.Linear), ("softmax", self.softmax, nn.Softmax)

    def fast(self, x: Tensor) -> Tensor:
        return models.GATsNet.forward(self, self.days(x)).squeeze()


class GATModel(_Rows, _GATModel):
    pass


class GATModelOfWindows(_Windows, _GATModel):
    pass


class HISTModel(_Rows, Swapped, models.HISTNet):
    def uses(self) -> Used:
        softmaxes = (("softmax_s2t", self.softmax_s2t), ("softmax_t2s", self.softmax_t2s))
        return ("rnn", self.rnn, Swapped), *((name, softmax, nn.Softmax) for name, softmax in softmaxes)

    def fast(self, x: Tensor, concept_matrix: Tensor) -> Tensor:
        return models.HISTNet.forward(self, self.days(x), concept_matrix).squeeze()


class SFMModel(Swapped, models.SFMNet):
    variant = "qlib"

    def uses(self) -> Used:
        return ("activation", self.activation, nn.Tanh), ("inner_activation", self.inner_activation, nn.Hardsigmoid)

    def fast(self, input: Tensor) -> Tensor:
        return models.SFMNet.forward(self, input.reshape(len(input), -1)).squeeze()


class LocalformerEncoder(Swapped, ours.LocalformerEncoder):
    fast = ours.LocalformerEncoder.forward

    def uses(self) -> Used:
        for number, (layer, conv) in enumerate(zip(self.layers, self.conv, strict=True)):
            yield f"layers.{number}", layer, Swapped
            yield f"conv.{number}", conv, nn.Conv1d

    def obstacle(self) -> str | None:
        for number, conv in enumerate(self.conv):
            if conv.kernel_size != (3,) or conv.stride != (1,) or conv.padding != (1,) or conv.dilation != (1,) or conv.groups != 1:
                return f"the kernels have a convolution of three taps, conv.{number} is another"
            if conv.padding_mode != "zeros":
                return f"the kernels pad with zeros, conv.{number} has padding_mode={conv.padding_mode!r}"
        return None
