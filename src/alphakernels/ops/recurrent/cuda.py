"""recurrent on a GPU: what is one matrix product over all steps (a layer's input projection, the gradients of its weights and of its
input) is torch's; what goes from step to step is csrc/cuda's, one launch a layer.

All inside is time first. torch's own switches decide over TF32: `torch.backends.cudnn.rnn.fp32_precision` (or the older
`cudnn.allow_tf32`) for the recurrences, `torch.backends.cuda.matmul`'s for the products.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .. import _library
from .reference import GATES, layers_of

# The kernels of the second library, registered by it for the CUDA key. They write where they are told to.
KERNELS = {
    "recurrent_layer": "Tensor sums, Tensor weight, Tensor? bias, Tensor? h0, Tensor? c0, Tensor(a!)? output, Tensor(b!) h_n, "
    "Tensor(c!)? c_n, Tensor(d!)? gates, Tensor(e!)? cells, bool tf32",
    "recurrent_layer_backward": "Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor weight, Tensor? h0, Tensor? c0, "
    "Tensor output, Tensor gates, Tensor? cells, Tensor(a!) grads, Tensor(b!) dh0, Tensor(c!)? dc0, Tensor(d!) bias_grads, bool tf32",
    "dropout_rows": "Tensor rows, Tensor(a!) to, Tensor seed, int stream, float p",
}
for _name, _arguments in KERNELS.items():
    torch.library.define(f"{_library.NAMESPACE}::{_name}", f"({_arguments}) -> ()")
_kernels = torch.ops.alphakernels

TILE_ROWS = 16  # batch rows of a block
# Of x's sides of a GRU's gate gradients, [n, r, z] (cells.h), torch's order is [r, z, n]; W_hh's side [r, z, n] begins with the second.
_TURNS = {"gru": 1, "lstm": 0}


def tf32_allowed() -> bool:
    """Whether torch's switches let a recurrence round its float32 operands to TF32."""
    return torch.backends.cudnn.rnn.fp32_precision == "tf32"


@cache
def _device_limit(device: int | None, cell: str, precision: int, hidden: int, keep: bool) -> str | None:
    device = torch.cuda.current_device() if device is None else device
    properties = torch.cuda.get_device_properties(device)
    has = f"{properties.name} has compute capability {properties.major}.{properties.minor}"
    if properties.major < 8:
        return f"the CUDA kernel needs compute capability 8.0, {has}"
    if not _library.cuda_runs_on(device):
        code = f"{properties.major}{properties.minor}"
        return f"{has}, for which the CUDA library holds no code: build it with ALPHAKERNELS_CUDA_ARCHS={code}"
    needed = [_library.cuda_shared_bytes(cell == "lstm", precision, hidden, backward) for backward in ([False, True] if keep else [False])]
    if min(needed) < 0:
        return f"the CUDA kernel takes hidden sizes from 1 to 128, this one is {hidden}"
    room = properties.shared_memory_per_block_optin
    if max(needed) > room:
        need = f"the weights of hidden size {hidden} need {max(needed) >> 10} KB of shared memory"
        return f"{need}, a block of {properties.name} has {room >> 10}"
    return None


def precision_of(dtype: torch.dtype) -> int:
    """The number of csrc/cuda/recurrent.h's Precision."""
    return {torch.bfloat16: 2, torch.float16: 3}.get(dtype, int(tf32_allowed()))


def _limit(device: int | None, dtype: torch.dtype, cell: str, hidden: int, keep: bool) -> str | None:
    return _device_limit(device, cell, precision_of(dtype), hidden, keep)


# Constant for torch.compile, which cannot trace it; see _backend._kernel.
_limit._dynamo_marked_constant = True


def limit(x: Tensor, cell: str, hidden: int, keep: bool) -> str | None:
    """Why the CUDA kernel cannot run a stack of this hidden size on x's device, or None."""
    return _limit(x.device.index, x.dtype, cell, hidden, keep)


def _time_first(x: Tensor, batch_first: bool) -> Tensor:
    return (x.transpose(0, 1) if batch_first else x).contiguous()


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _dropped(rows: Tensor, to: Tensor, seed: Tensor | None, layer: int, p: float) -> Tensor:
    """What layer `layer` hands on, [T, B, H], with dropout, written to `to`; `rows` itself where there is none."""
    if seed is None or p == 0:
        return rows
    _kernels.dropout_rows(rows, to, seed.to(rows.device), layer, p)
    return to


def recurrent(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[Tensor],
    seed: Tensor | None,
    cell: str,
    biases: bool,
    batch_first: bool,
    sequence: bool,
    dropout: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The op's forward kernel, for the CUDA key; see `op._fake` for what it returns."""
    layers = layers_of(weights, biases)
    steps = _time_first(x, batch_first)  # [T, B, I]
    length, batch, _ = steps.shape
    hidden, lstm = weights[1].shape[1], cell == "lstm"
    rows = GATES[cell] * hidden
    unseen = len(layers) - sequence  # layers whose states `output` does not show

    output = x.new_empty((batch, length * sequence, hidden) if batch_first else (length * sequence, batch, hidden))
    h_n = x.new_empty(len(layers), batch, hidden)
    c_n = x.new_empty((len(layers), batch, hidden) if lstm else 0)
    gates = x.new_empty((len(layers), length, batch, 4 * hidden) if keep else 0)
    states = x.new_empty((unseen + len(layers) * lstm, length, batch, hidden) if keep else 0)
    if batch == 0 or hidden == 0:
        return output, h_n, c_n, gates, states
    h0, c0 = (None if s is None else s.contiguous() for s in (h0, c0))
    for number, (w_ih, w_hh, b_ih, b_hh) in enumerate(layers):
        top = number + 1 == len(layers)
        if top and sequence:
            shown = output.transpose(0, 1) if batch_first else output  # [T, B, H]
        elif keep:
            shown = states[number]
        else:
            shown = None if top else x.new_empty(length, batch, hidden)
        bias_n = None
        if not biases:
            sums = _flat(steps) @ w_ih.t()  # [T * B, GH]
        elif lstm:
            sums = torch.addmm(b_ih + b_hh, _flat(steps), w_ih.t())
        else:  # b_hn stands inside r * (W_hn h + b_hn)
            bias_n = b_hh[2 * hidden :].contiguous()
            sums = torch.addmm(torch.cat([b_ih[: 2 * hidden] + b_hh[: 2 * hidden], b_ih[2 * hidden :]]), _flat(steps), w_ih.t())
        _kernels.recurrent_layer(
            sums.view(length, batch, rows),
            w_hh.contiguous(),
            bias_n,
            None if h0 is None else h0[number],
            None if c0 is None else c0[number],
            shown,
            h_n[number],
            c_n[number] if lstm else None,
            gates[number] if keep else None,
            states[unseen + number] if keep and lstm else None,
            tf32_allowed(),
        )
        del sums
        if not top:
            steps = _dropped(shown, torch.empty_like(shown) if keep else shown, seed, number, dropout)
    return output, h_n, c_n, gates, states


def _where_given(gradient: Tensor, state: Tensor | None) -> Tensor:
    """The gradient of an initial state; of none, nothing."""
    return gradient if state is not None else gradient.new_empty(0)


def recurrent_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[Tensor],
    output: Tensor,
    gates: Tensor,
    states: Tensor,
    seed: Tensor | None,
    cell: str,
    biases: bool,
    batch_first: bool,
    dropout: float,
    x_needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op's backward kernel, for the CUDA key: dx, dh0, dc0 and the gradients of all weights, end to end."""
    layers = layers_of(weights, biases)
    steps = _time_first(x, batch_first)
    length, batch, _ = steps.shape
    hidden, lstm = weights[1].shape[1], cell == "lstm"
    rows, turn = GATES[cell] * hidden, _TURNS[cell]
    shown = output.numel() > 0
    unseen = len(layers) - shown

    dx = x.new_empty(x.shape if x_needs_grad else 0)
    dh0 = x.new_empty(len(layers), batch, hidden)
    dc0 = x.new_empty((len(layers), batch, hidden) if lstm else 0)
    dweights = x.new_empty(sum(w.numel() for w in weights))
    if batch == 0 or hidden == 0:
        return dx, _where_given(dh0, h0), _where_given(dc0, c0), dweights.zero_()
    per_layer = layers_of(list(dweights.split([w.numel() for w in weights])), biases)
    h0, c0, grad_h_n, grad_c_n = (None if s is None else s.contiguous() for s in (h0, c0, grad_h_n, grad_c_n if lstm else None))

    def hidden_states(layer: int) -> Tensor:  # [T, B, H]
        if layer < unseen:
            return states[layer]
        return output.transpose(0, 1) if batch_first else output

    def given(state: Tensor | None, layer: int) -> Tensor | None:
        return None if state is None else state[layer]

    grad = None  # of a layer's output
    if grad_output is not None and shown:
        grad = grad_output.transpose(0, 1) if batch_first else grad_output
        grad = grad if grad.stride(2) == 1 or hidden == 1 else grad.contiguous()
    grads = x.new_empty(length, batch, 4 * hidden)
    bias_grads = torch.empty(-(-batch // TILE_ROWS) * (TILE_ROWS // 2), 4 * hidden, dtype=torch.float32, device=x.device)
    for number in reversed(range(len(layers))):
        w_ih, w_hh, *_ = layers[number]
        dw_ih, dw_hh, db_ih, db_hh = per_layer[number]
        _kernels.recurrent_layer_backward(
            grad,
            given(grad_h_n, number),
            given(grad_c_n, number),
            w_hh.contiguous(),
            given(h0, number),
            given(c0, number),
            hidden_states(number),
            gates[number],
            states[unseen + number] if lstm else None,
            grads,
            dh0[number],
            dc0[number] if lstm else None,
            bias_grads,
            tf32_allowed(),
        )
        grads_x, grads_h = _flat(grads)[:, :rows], _flat(grads)[:, 4 * hidden - rows :]  # [T * B, GH]
        below = steps
        if number > 0:
            below = hidden_states(number - 1)
            below = _dropped(below, torch.empty_like(below) if dropout > 0 else below, seed, number - 1, dropout)
        if turn:
            dw_ih.view_as(w_ih).copy_((grads_x.t() @ _flat(below)).roll(-turn * hidden, 0))
        else:
            torch.mm(grads_x.t(), _flat(below), out=dw_ih.view_as(w_ih))
        torch.mm(grads_h[batch:].t(), _flat(hidden_states(number)[:-1]), out=dw_hh.view_as(w_hh))
        if h0 is not None:
            dw_hh.view_as(w_hh).addmm_(grads_h[:batch].t(), h0[number])
        if biases:
            db = bias_grads.sum(0)
            db_ih.copy_(db[:rows].roll(-turn * hidden) if turn else db)
            db_hh.copy_(db[4 * hidden - rows :])
        if number == 0 and not x_needs_grad:
            break
        grad = (grads_x @ (w_ih.roll(turn * hidden, 0) if turn else w_ih)).view(length, batch, -1)
        if number > 0:
            grad = _dropped(grad, grad, seed, number - 1, dropout)
        else:
            dx.copy_(grad.transpose(0, 1) if batch_first else grad)
    return dx, _where_given(dh0, h0), _where_given(dc0, c0), dweights
