"""GRU and LSTM stacks that take the place of `torch.nn.GRU` and `torch.nn.LSTM`, and ALSTM's attention over their output."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import ops
from ..ops import _backend, _checks
from ..ops.recurrent.op import why_torch


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

    def _one_sequence(self, input: Tensor) -> bool:
        """Whether the input is one sequence [T, I].

        Raises:
            TypeError, ValueError: it is no tensor, or neither that nor a batch.
        """
        op = type(self).__name__
        _checks.require_float(op, "input", input)
        batch = "[B, T, I]" if self.batch_first else "[T, B, I]"
        _checks.require(input.dim() in (2, 3), op, "input", f"of shape {batch}, or [T, I] of one sequence", list(input.shape))
        return input.dim() == 2

    def _state(self, name: str, state: Tensor | None, one: bool) -> Tensor | None:
        """[layers, B, H] of a state as it was given."""
        if state is None:
            return None
        shape = f"[{self.num_layers}, {'' if one else 'B, '}{self.hidden_size}]{' with one sequence' if one else ''}"
        _checks.require_rank(type(self).__name__, name, state, 2 if one else 3, shape)
        return state.unsqueeze(1) if one else state

    def _run(self, input: Tensor, h0: Tensor | None, c0: Tensor | None = None, sequence: bool = True):
        held = self._parameters  # getattr takes five times as long; what a parametrization has moved is found by it alone
        weights = [held[name] if name in held else getattr(self, name) for name in self._flat_weights_names]
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
        one = self._one_sequence(input)
        hx = self._state("hx", hx, one)
        if not one:
            output, h_n, _ = self._run(input, hx)
            return output, h_n
        batch = 0 if self.batch_first else 1
        output, h_n, _ = self._run(input.unsqueeze(batch), hx)
        return output.squeeze(batch), h_n.squeeze(1)


class LSTM(_Stack):
    """`torch.nn.LSTM` by the op `recurrent`: same constructor, same state_dict, same outputs.

    Bidirectional stacks, projections and packed sequences run on torch's own; `alphakernels.explain` says so. torch.compile cannot train
    torch's own LSTM: call `torch.compiler.disable` on the forward of such a module.

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

    def _slower(self, input: Tensor) -> str | None:
        """Why torch's own is the faster one, or None. The op would find the same; found here, one stock is spared the way through it."""
        held = self._parameters
        if input.dim() != 3 or torch.is_autocast_enabled(input.device.type) or not _backend.automatic():
            return None
        if any(name not in held for name in self._flat_weights_names):  # torch's own would not see what a parametrization makes of them
            return None
        first = held["weight_ih_l0"]
        if input.shape[2] != first.shape[1] or input.dtype is not first.dtype or 0 in input.shape:
            return None  # the op says what is wrong
        keep = torch.is_grad_enabled() and (input.requires_grad or any(p.requires_grad for p in held.values()))
        return why_torch(input, "lstm", input.shape[0 if self.batch_first else 1], self.hidden_size, keep)

    def forward(self, input: Tensor | PackedSequence, hx: tuple[Tensor, Tensor] | None = None):
        reason = self._uncovered(input)
        if reason is None:
            one = self._one_sequence(input)
            reason = self._slower(input) if hx is None else None  # the op looks at states
        if reason is not None:
            self._watch_torch(input, reason)
            return self._by_torch(input, hx)
        pair = hx is None or isinstance(hx, (tuple, list)) and len(hx) == 2
        _checks.require(pair, "LSTM", "hx", "a pair (h_0, c_0)", type(hx).__name__, TypeError)
        h0, c0 = (self._state(name, state, one) for name, state in zip(("h_0", "c_0"), hx or (None, None), strict=True))
        if not one:
            output, h_n, c_n = self._run(input, h0, c0)
            return output, (h_n, c_n)
        batch = 0 if self.batch_first else 1
        output, h_n, c_n = self._run(input.unsqueeze(batch), h0, c0)
        return output.squeeze(batch), (h_n.squeeze(1), c_n.squeeze(1))
