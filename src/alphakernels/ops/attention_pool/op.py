"""attention_pool: ALSTM's scores, softmax over time and weighted sum in one pass over a recurrent layer's output."""

from __future__ import annotations

from torch import Tensor

from .. import _backend, _checks, _random
from .._library import Formula, define
from . import reference

_TRITON = "alphakernels.ops.attention_pool.triton"
_TRITON_COLUMNS = 512  # a tile of more does not fit into the shared memory of the smaller GPUs


def _setup(ctx, inputs, output) -> None:
    h, weight, bias, score, seed, ctx.dropout = inputs
    ctx.save_for_backward(h, weight, bias, score, seed, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, ops, grad_out: Tensor | None, grad_weights: Tensor | None):
    h, weight, bias, score, seed, weights = ctx.saved_tensors
    if grad_out is None and grad_weights is None:
        return (None,) * 6
    if grad_out is None:
        grad_out = h.new_zeros(h.shape[0], 2 * h.shape[2])
    dh, dweight, dbias, dscore = ops.attention_pool_backward(grad_out, grad_weights, h, weight, bias, score, weights, seed, ctx.dropout)
    return dh, dweight, dbias if bias is not None else None, dscore, None, None


ATTENTION_POOL = define(
    "attention_pool",
    "(Tensor h, Tensor weight, Tensor? bias, Tensor score, Tensor? seed, float dropout) -> (Tensor, Tensor)",
    fake=lambda h, *_: (h.new_empty(h.shape[0], 2 * h.shape[2]), h.new_empty(h.shape[0], h.shape[1])),
    formula=Formula(_setup, _backward),
    triton=_TRITON,
)

define(
    "attention_pool_backward",
    "(Tensor grad_out, Tensor? grad_weights, Tensor h, Tensor weight, Tensor? bias, Tensor score, Tensor weights, Tensor? seed, "
    "float dropout) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=lambda grad_out, grad_weights, h, weight, bias, score, *_: (
        h.new_empty(h.shape),
        h.new_empty(weight.shape),
        h.new_empty(score.shape),
        h.new_empty(score.shape),
    ),
    triton=_TRITON,
)


def _limit(kernel: str, hidden: int) -> str | None:
    if kernel != "triton" or hidden <= _TRITON_COLUMNS:
        return None
    return f"the Triton kernel takes h of up to {_TRITON_COLUMNS} columns, this one has {hidden}"


def attention_pool(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    score: Tensor,
    *,
    dropout: float = 0.0,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The last state and the attention-weighted sum of all states: `[h_T ; sum_t a_t h_t]`, a = softmax_t(v · tanh(dropout(W h_t + b))).

    Args:
        h: [B, T, H] floating point, T >= 1: a recurrent layer's output.
        weight: [A, H], W.
        bias: [A] or None, b.
        score: [A], v.
        dropout: probability of an element of W h_t + b to be zeroed (the rest is scaled by 1 / (1 - dropout)); 0 in evaluation. The
            mask comes from a counter-based generator seeded by torch's.
        return_weights: whether the weights are returned too.

    Returns:
        [B, 2H] in h's dtype; with `return_weights` also a [B, T].

    Raises:
        TypeError: h is not floating point; parameters of another dtype.
        ValueError: shapes that do not fit; no time step; dropout outside of [0, 1].

    Source: Qin et al. 2017, arXiv:1704.02971; Qlib's ALSTMModel.
    """
    op = "attention_pool"
    _checks.require_float(op, "h", h)
    _checks.require_rank(op, "h", h, 3, "[B, T, H]")
    h, weight, bias, score = _checks.autocast(h, weight, bias, score)
    _checks.require(h.shape[1] > 0, op, "h", "of at least one time step", list(h.shape))
    _checks.require_float(op, "score", score)
    _checks.require_rank(op, "score", score, 1, "[A]")
    _checks.require_like(op, "score", score, h, (score.shape[0],))
    _checks.require_like(op, "weight", weight, h, (score.shape[0], h.shape[2]))
    _checks.require_like(op, "bias", bias, h, (score.shape[0],))
    _checks.require(0 <= dropout <= 1, op, "dropout", "a probability", dropout)
    seed = _random.draw_seed(h.device) if dropout > 0 else None
    out, weights = _backend.run(
        ATTENTION_POOL,
        reference.attention_pool,
        h,
        h,
        weight,
        bias,
        score,
        seed,
        float(dropout),
        limit=lambda kernel: _limit(kernel, h.shape[2]),
    )
    return (out, weights) if return_weights else out
