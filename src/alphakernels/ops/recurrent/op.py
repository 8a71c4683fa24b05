"""recurrent: all layers and all time steps of a GRU or LSTM stack in one call."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _backend, _checks, _random
from .._library import Formula, define
from . import cuda, reference
from .reference import GATES


class Recurrent(NamedTuple):
    """What `recurrent` returns: c_n is None for a GRU."""

    output: Tensor
    h_n: Tensor
    c_n: Tensor | None


def _layout(x: Tensor, weights: list[Tensor], biases: bool, batch_first: bool) -> tuple[int, int, int, int]:
    """(B, T, H, layers)."""
    batch, steps = (x.shape[0], x.shape[1]) if batch_first else (x.shape[1], x.shape[0])
    return batch, steps, weights[1].shape[1], len(weights) // (4 if biases else 2)


def _fake(x, h0, c0, weights, seed, cell, biases, batch_first, sequence, dropout, keep):
    batch, steps, hidden, layers = _layout(x, weights, biases, batch_first)
    shown = steps if sequence else 0
    output = x.new_empty((batch, shown, hidden) if batch_first else (shown, batch, hidden))
    lstm = cell == "lstm"
    # Kept for the backward pass, time before batch: four gate values of every unit (GRU: new, reset, update and W_hn h + b_hn;
    # LSTM: input, forget, cell, output), the hidden states that `output` does not hold, the cell states.
    states = layers - sequence + (layers if lstm else 0)
    return (
        output,
        x.new_empty(layers, batch, hidden),
        x.new_empty((layers, batch, hidden) if lstm else 0),
        x.new_empty((layers, steps, batch, 4 * hidden) if keep else 0),
        x.new_empty((states, steps, batch, hidden) if keep else 0),
    )


def _setup(ctx, inputs, output) -> None:
    x, h0, c0, weights, seed, ctx.cell, ctx.biases, ctx.batch_first, _, ctx.dropout, ctx.keep = inputs
    ctx.save_for_backward(x, h0, c0, seed, output[0], output[3], output[4], *weights)
    ctx.set_materialize_grads(False)


def _backward(ctx, ops, grad_output: Tensor | None, grad_h_n: Tensor | None, grad_c_n: Tensor | None, *_):
    x, h0, c0, seed, output, gates, states, *weights = ctx.saved_tensors
    nothing = (None,) * 6
    if grad_output is None and grad_h_n is None and grad_c_n is None:
        return None, None, None, [None] * len(weights), None, *nothing
    if not ctx.keep:
        raise RuntimeError("recurrent: a call with keep=False kept nothing to differentiate it with")
    dx, dh0, dc0, flat = ops.recurrent_backward(
        grad_output,
        grad_h_n,
        grad_c_n,
        x,
        h0,
        c0,
        weights,
        output,
        gates,
        states,
        seed,
        ctx.cell,
        ctx.biases,
        ctx.batch_first,
        ctx.dropout,
        ctx.needs_input_grad[0],
    )
    dweights = [piece.view(w.shape) for piece, w in zip(flat.split([w.numel() for w in weights]), weights, strict=True)]
    return (
        dx if ctx.needs_input_grad[0] else None,
        dh0 if h0 is not None else None,
        dc0 if c0 is not None else None,
        dweights,
        None,
        *nothing,
    )


RECURRENT = define(
    "recurrent",
    "(Tensor x, Tensor? h0, Tensor? c0, Tensor[] weights, Tensor? seed, str cell, bool biases, bool batch_first, bool sequence, "
    "float dropout, bool keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_fake,
    formula=Formula(_setup, _backward),
    cuda=cuda.recurrent,
)


def _fake_backward(
    grad_output, grad_h_n, grad_c_n, x, h0, c0, weights, output, gates, states, seed, cell, biases, batch_first, dropout, x_needs_grad
):  # fmt: skip
    batch, _, hidden, layers = _layout(x, weights, biases, batch_first)
    return (
        x.new_empty(x.shape if x_needs_grad else 0),
        x.new_empty(0 if h0 is None else (layers, batch, hidden)),
        x.new_empty(0 if c0 is None else (layers, batch, hidden)),
        x.new_empty(sum(w.numel() for w in weights)),
    )


define(
    "recurrent_backward",
    "(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor x, Tensor? h0, Tensor? c0, Tensor[] weights, Tensor output, "
    "Tensor gates, Tensor states, Tensor? seed, str cell, bool biases, bool batch_first, float dropout, bool x_needs_grad) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    fake=_fake_backward,
    cuda=cuda.recurrent_backward,
)


def _shapes(cell: str, width: int, hidden: int, layers: int, biases: bool) -> list[tuple[int, ...]]:
    """Of the weights in order."""
    rows, shapes = GATES[cell] * hidden, []
    for number in range(layers):
        shapes += ((rows, hidden if number > 0 else width), (rows, hidden))
        if biases:
            shapes += ((rows,), (rows,))
    return shapes


def _check(x, weights, cell, h0, c0, biases, batch_first, dropout) -> None:
    op = "recurrent"
    if cell not in GATES:
        _checks.require(False, op, "cell", "'gru' or 'lstm'", repr(cell))
    _checks.require_float(op, "x", x)
    _checks.require_rank(op, "x", x, 3, "[B, T, I]" if batch_first else "[T, B, I]")
    per_layer = 4 if biases else 2
    if len(weights) == 0 or len(weights) % per_layer > 0:
        _checks.require(False, op, "weights", f"{per_layer} tensors a layer", f"{len(weights)} tensors")
    if not isinstance(weights[1], Tensor) or weights[1].dim() != 2:
        _checks.require(False, op, "weight_hh", "of shape [GH, H]", weights[1])
    batch, steps, hidden, layers = _layout(x, weights, biases, batch_first)
    if steps == 0:
        _checks.require(False, op, "x", "of at least one time step", list(x.shape))
    shapes = _shapes(cell, x.shape[2], hidden, layers, biases)
    if not _checks.all_like(weights, x, shapes):
        _refuse(op, x, weights, shapes, per_layer)
    _checks.require_like(op, "h0", h0, x, (layers, batch, hidden))
    _checks.require_like(op, "c0", c0, x, (layers, batch, hidden))
    _checks.require(c0 is None or cell == "lstm", op, "c0", "None for a GRU", "a tensor")
    _checks.require(0 <= dropout <= 1, op, "dropout", "a probability", dropout)


def _refuse(op: str, x: Tensor, weights: list[Tensor], shapes: list[tuple[int, ...]], per_layer: int) -> None:
    """Raises for x or for the first weight that does not fit it."""
    first = weights[0]
    if isinstance(first, Tensor) and first.dim() == 2:  # of the two, x is likelier the wrong one
        columns = first.shape[1]
        _checks.require(x.shape[2] == columns, op, "x", f"of {columns} features, as weight_ih_l0 has columns", list(x.shape))
        _checks.require(x.dtype == first.dtype, op, "x", f"of dtype {first.dtype}, as weight_ih_l0", x.dtype, TypeError)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    for i, (weight, shape) in enumerate(zip(weights, shapes, strict=True)):
        name = f"{names[i % per_layer]}_l{i // per_layer}"
        _checks.require(weight is not None, op, name, "a torch.Tensor", None, TypeError)
        _checks.require_like(op, name, weight, x, shape)


def _by_torch(x, h0, c0, weights, seed, cell, biases, batch_first, sequence, dropout, keep):
    """The same by torch's own kernel: cuDNN, oneDNN, or a chain of ATen's operators."""
    batch, _, hidden, layers = _layout(x, weights, biases, batch_first)
    h0 = x.new_zeros(layers, batch, hidden) if h0 is None else h0
    training = keep or dropout > 0  # without dropout no number depends on it, and cuDNN goes backward through a training call alone
    options = (weights, biases, layers, dropout, training, False, batch_first)
    if cell == "gru":
        output, h_n, *c_n = torch._VF.gru(x, h0, *options)
    else:
        output, h_n, *c_n = torch._VF.lstm(x, (h0, torch.zeros_like(h0) if c0 is None else c0), *options)
    if not sequence:
        output = output[:, :0] if batch_first else output[:0]
    return output, h_n, c_n[0] if c_n else None, None, None


def why_torch(x: Tensor, cell: str, batch: int, hidden: int, keep: bool) -> str | None:
    """Why torch's own kernel is the faster one for this call; None where ours is. Of a GRU torch has no kernel on the CPU.

    The limits are measured (Zen 5, 2 threads, H 16 to 800, B 1 to 800, T 20 to 240): weights that outgrow the cache favour oneDNN's matrix
    products where few rows share them.
    """
    if cell == "gru" or x.device.type != "cpu" or x.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return None
    if not keep:
        if hidden > 512:
            return f"oneDNN's LSTM is faster beyond hidden size 512, this one is {hidden}"
        limit = 100 if hidden > 448 else 8 if hidden >= 384 else 2 if hidden >= 256 else 0
        return f"oneDNN's LSTM is faster with fewer than {limit} rows at hidden size {hidden}, these are {batch}" if batch < limit else None
    limit = hidden**2 // 14000
    if batch < limit:
        return f"oneDNN's LSTM trains faster with fewer than {limit} rows at hidden size {hidden}, these are {batch}"
    return None


def recurrent(
    x: Tensor,
    weights: list[Tensor],
    *,
    cell: str,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    biases: bool = True,
    batch_first: bool = True,
    sequence: bool = True,
    dropout: float = 0.0,
) -> Recurrent:
    """A stack of GRU or LSTM layers over a sequence: the equations and the parameters of `torch.nn.GRU` and `torch.nn.LSTM`.

    Args:
        x: [B, T, I] floating point, T >= 1; [T, B, I] where not `batch_first`.
        weights: of each layer weight_ih [GH, I] (of upper layers [GH, H]), weight_hh [GH, H] and, with `biases`, bias_ih [GH] and
            bias_hh [GH]; G is 3 (reset, update, new) for a GRU, 4 (input, forget, cell, output) for an LSTM.
        cell: "gru" or "lstm".
        h0, c0: [layers, B, H], the states before the first step; zeros if None. c0 is an LSTM's.
        biases, batch_first: as above.
        sequence: whether `output` is wanted. Without it nothing of size T is made in inference.
        dropout: probability of an element between two layers to be zeroed (the rest is scaled by 1 / (1 - dropout)); 0 in
            evaluation. The mask comes from a counter-based generator seeded by torch's: it does not depend on the number of threads.

    Returns:
        output [B, T, H] ([T, B, H] where not `batch_first`; without `sequence` its T is 0): the top layer's hidden state at each
        step; h_n [layers, B, H] and, of an LSTM, c_n [layers, B, H]: the states after the last step. In x's dtype.

    On the CPU, in inference, rows that hold the days of the row before them one step on (windows of one history, in order) share the
    first layer's products: the same bits in less time.

    On a GPU the CUDA kernels take hidden sizes up to 128, as far as the weights fit beside what a block has of shared memory; float32
    is rounded to TF32 where `torch.backends.cudnn.rnn.fp32_precision` allows that, as in torch's own. Where there is no kernel for the
    tensors (half precision on the CPU, a GPU without the CUDA library), or torch's own is the faster at their size, torch's own runs;
    `explain` says so.

    Raises:
        TypeError: x is not floating point; weights or states of another dtype.
        ValueError: unknown cell; shapes that do not fit; no time step; dropout outside of [0, 1].

    Source: Cho et al. 2014, arXiv:1406.1078, with torch.nn.GRU's reset gate; Hochreiter & Schmidhuber 1997; Gers et al. 2000.
    """
    x, h0, c0, *weights = _checks.autocast(x, h0, c0, *weights)
    _check(x, weights, cell, h0, c0, biases, batch_first, dropout)
    batch, _, hidden, layers = _layout(x, weights, biases, batch_first)
    dropout = float(dropout) if layers > 1 else 0.0
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*weights, x, h0, c0))
    seed = _random.draw_seed(x.device) if dropout > 0 else None
    arguments = (x, h0, c0, weights, seed, cell, biases, batch_first, sequence, dropout, keep)
    output, h_n, c_n, _, _ = _backend.run(
        RECURRENT,
        reference.recurrent,
        x,
        *arguments,
        limit=lambda kernel: cuda.limit(x, cell, hidden, keep) if kernel == "cuda" else None,
        torch_is_better=lambda: why_torch(x, cell, batch, hidden, keep),
        # torch.compile cannot go backward through torch's own.
        native=None if keep and torch.compiler.is_compiling() else _by_torch,
    )
    return Recurrent(output, h_n, c_n if cell == "lstm" else None)
