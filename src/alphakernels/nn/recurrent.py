"""GRU and LSTM stacks that take the place of `torch.nn.GRU` and `torch.nn.LSTM`, and ALSTM's attention over their output."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import ops
from ..ops import _backend


class _Stack(nn.RNNBase):
    """What the two have in common. The parameters, their names and their initial values are torch's, by inheritance from the base of
    torch.nn.GRU and torch.nn.LSTM (not from these two: torch.compile refuses to look into them)."""

    def _uncovered(self, input: Tensor | PackedSequence) -> str | None:
        """Why torch's own must run this call, or None."""
        if self.bidirectional:
            return "the kernels run in one direction only, the module is bidirectional"
        if self.proj_size > 0:
            return f"the kernels have no projections, proj_size is {self.proj_size}"
        if isinstance(input, PackedSequence):
            return "the kernels take padded tensors, the input is a PackedSequence"
        return None

    def _watch_torch(self, input: Tensor | PackedSequence, reason: str) -> None:
        tensor = input.data if isinstance(input, PackedSequence) else input
        _backend.watch_torch("recurrent", tensor, reason)

    def _run(self, input: Tensor, h0: Tensor | None, c0: Tensor | None = None, sequence: bool = True):
        weights = [getattr(self, name) for name in self._flat_weights_names]
        return ops.recurrent(
            input,
            weights,
            cell=self.mode.lower(),
            h0=h0,
            c0=c0,
            biases=self.bias,
            batch_first=self.batch_first,
            sequence=sequence,
            dropout=self.dropout if self.training else 0.0,
        )

    def last(self, input: Tensor) -> Tensor:
        """The top layer's state after the last step, [B, H] of input [B, T, I]: `self(input)[0][:, -1]` without the output before it."""
        reason = self._uncovered(input)
        if reason is not None:
            self._watch_torch(input, reason)
            return self._by_torch(input)[0].select(1 if self.batch_first else 0, -1)
        return self._run(input, None, sequence=False).h_n[-1]


class GRU(_Stack):
    """`torch.nn.GRU` by the op `recurrent`: same constructor, same state_dict, same outputs.

    Bidirectional stacks and packed sequences run on torch's own; `alphakernels.explain` says so.

    Shapes: input [B, T, I] if `batch_first`, else [T, B, I], or [T, I] of one sequence; hx [layers, B, H] or None ->
    (output [B, T, H], h_n [layers, B, H]).
    """

    def __init__(self, *args, **kwargs) -> None:
        if "proj_size" in kwargs:
            raise ValueError("GRU: proj_size is an argument of LSTM only")
        super().__init__("GRU", *args, **kwargs)

    _by_torch = nn.GRU.forward

    def forward(self, input: Tensor | PackedSequence, hx: Tensor | None = None):
        reason = self._uncovered(input)
        if reason is not None:
            self._watch_torch(input, reason)
            return self._by_torch(input, hx)
        if input.dim() != 2:
            output, h_n, _ = self._run(input, hx)
            return output, h_n
        batch = 0 if self.batch_first else 1
        output, h_n, _ = self._run(input.unsqueeze(batch), None if hx is None else hx.unsqueeze(1))
        return output.squeeze(batch), h_n.squeeze(1)


class LSTM(_Stack):
    """`torch.nn.LSTM` by the op `recurrent`: same constructor, same state_dict, same outputs.

    Bidirectional stacks, projections and packed sequences run on torch's own; `alphakernels.explain` says so.

    Shapes: input [B, T, I] if `batch_first`, else [T, B, I], or [T, I] of one sequence; hx (h_0, c_0) of [layers, B, H] or None ->
    (output [B, T, H], (h_n, c_n) of [layers, B, H]).
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__("LSTM", *args, **kwargs)

    _by_torch = nn.LSTM.forward
    # What torch's forward asks of its module: the states are a pair.
    check_forward_args = nn.LSTM.check_forward_args
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    permute_hidden = nn.LSTM.permute_hidden

    def forward(self, input: Tensor | PackedSequence, hx: tuple[Tensor, Tensor] | None = None):
        reason = self._uncovered(input)
        if reason is not None:
            self._watch_torch(input, reason)
            return self._by_torch(input, hx)
        h0, c0 = (None, None) if hx is None else hx
        if input.dim() != 2:
            output, h_n, c_n = self._run(input, h0, c0)
            return output, (h_n, c_n)
        batch = 0 if self.batch_first else 1
        h0, c0 = (None if t is None else t.unsqueeze(1) for t in (h0, c0))
        output, h_n, c_n = self._run(input.unsqueeze(batch), h0, c0)
        return output.squeeze(batch), (h_n.squeeze(1), c_n.squeeze(1))
