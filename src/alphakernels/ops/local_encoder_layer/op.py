"""local_encoder_layer: LocalFormer's encoder layer, or torch's post-norm layer, in one call."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _backend, _checks, _random
from .._library import Formula, define
from . import reference

MEMORY = ("auto", "low")
MAX_STEPS = 512  # a head's scores live in one tile
TRITON_WIDTH = 512  # in half precision, 256 in float32: a tile of tokens and one of weights share 99 KB of a GPU's memory
_TRITON = "alphakernels.ops.local_encoder_layer.triton"


def _fake(x, weights, mask, seed, heads, dropout, eps, want_u, keep):
    shape = x.shape
    return x.new_empty(shape), x.new_empty(shape if want_u and len(weights) == 14 else 0), x.new_empty((3, *shape) if keep else 0)


def _setup(ctx, inputs, output) -> None:
    x, weights, mask, seed, ctx.heads, ctx.dropout, ctx.eps, want_u, keep = inputs
    # Without `keep` the backward pass takes x alone: u is computed again even where it was returned.
    ctx.save_for_backward(x, mask, seed, output[1] if keep else x.new_empty(0), output[2], *weights)
    ctx.set_materialize_grads(False)


def _backward(ctx, ops, grad: Tensor | None, grad_u: Tensor | None, *_):
    x, mask, seed, u, kept, *weights = ctx.saved_tensors
    nothing = (None,) * 7
    if grad is None and grad_u is None:
        return None, [None] * len(weights), *nothing
    dx, flat = ops.local_encoder_layer_backward(
        torch.zeros_like(x) if grad is None else grad,
        grad_u if len(weights) == 14 else None,
        x,
        weights,
        mask,
        seed,
        u,
        kept,
        ctx.heads,
        ctx.dropout,
        ctx.eps,
        ctx.needs_input_grad[0],
    )
    dweights = [piece.view(w.shape) for piece, w in zip(flat.split([w.numel() for w in weights]), weights, strict=True)]
    return dx if ctx.needs_input_grad[0] else None, dweights, *nothing


LOCAL_ENCODER_LAYER = define(
    "local_encoder_layer",
    "(Tensor x, Tensor[] weights, Tensor? mask, Tensor? seed, int heads, float dropout, float eps, bool want_u, bool keep) "
    "-> (Tensor, Tensor, Tensor)",
    fake=_fake,
    formula=Formula(_setup, _backward),
    triton=_TRITON,
)


def _fake_backward(grad, grad_u, x, weights, mask, seed, u, kept, heads, dropout, eps, x_needs_grad):
    return x.new_empty(x.shape if x_needs_grad else 0), x.new_empty(sum(w.numel() for w in weights))


define(
    "local_encoder_layer_backward",
    "(Tensor grad, Tensor? grad_u, Tensor x, Tensor[] weights, Tensor? mask, Tensor? seed, Tensor u, Tensor kept, int heads, "
    "float dropout, float eps, bool x_needs_grad) -> (Tensor, Tensor)",
    fake=_fake_backward,
    triton=_TRITON,
)


def _check(x: Tensor, weights: list[Tensor], mask: Tensor | None, heads: int, dropout: float, memory: str) -> None:
    op = "local_encoder_layer"
    _checks.require_float(op, "x", x)
    _checks.require_rank(op, "x", x, 3, "[B, T, d]")
    _, steps, width = x.shape
    first = weights[0]
    if isinstance(first, Tensor) and first.dim() == 2:  # of the two that do not fit, x is likelier the wrong one
        _checks.require(width == first.shape[1], op, "x", f"of d = {first.shape[1]} columns, as in_proj_weight has", list(x.shape))
    _checks.require(heads >= 1 and width > 0 and width % heads == 0, op, "heads", f"a divisor of d = {width}", heads)
    linear1 = weights[4]
    _checks.require(isinstance(linear1, Tensor) and linear1.dim() == 2, op, "linear1_weight", "of shape [f, d]", linear1)
    d, f = width, linear1.shape[0]
    vector, shapes = (d,), ((3 * d, d), (3 * d,), (d, d), (d,), (f, d), (f,), (d, f))
    for name, weight, shape in zip(reference.NAMES, weights, (*shapes, *(vector,) * 5, (d, d, 3), vector), strict=False):
        _checks.require_like(op, name, weight, x, shape)
    _checks.require_like(op, "mask", mask, x, (steps, steps))
    _checks.require(mask is None or not mask.requires_grad, op, "mask", "without gradient", "one that requires it")
    _checks.require(0 <= dropout <= 1, op, "dropout", "a probability", dropout)
    _checks.require(memory in MEMORY, op, "memory", "'auto' or 'low'", repr(memory))


def triton_limit(width: int, dtype: torch.dtype) -> str | None:
    """Why the Triton kernel cannot take rows of `width` elements, or None."""
    most = TRITON_WIDTH // max(dtype.itemsize // 2, 1)
    return f"the triton kernel takes d up to {most} in {str(dtype).removeprefix('torch.')}, x has {width}" if width > most else None


def _torch_is_better(x: Tensor) -> str | None:
    steps, width = x.shape[1:]
    if steps > MAX_STEPS:
        return f"the kernels take up to {MAX_STEPS} steps, x has {steps}"
    return triton_limit(width, x.dtype) if x.is_cuda else None


def causal_mask(steps: int, like: Tensor) -> Tensor:
    """[T, T] of 0 where step j <= i, -inf after."""
    return torch.full((steps, steps), -torch.inf, dtype=like.dtype, device=like.device).triu(1)


def _by_torch(x, weights, mask, seed, heads, dropout, eps, want_u, keep):
    """The same by torch's own kernels."""
    w = dict(zip(reference.NAMES, weights, strict=False))
    batch, steps, width = x.shape
    p = dropout if seed is not None else 0.0
    u = reference.convolution(x, w["conv_weight"], w["conv_bias"]) if "conv_weight" in w else None
    s = x if u is None else x + u
    qkv = F.linear(s, w["in_proj_weight"], w["in_proj_bias"]).view(batch, steps, 3, heads, width // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, T, d / heads] each
    mixed = F.scaled_dot_product_attention(q, k, v, mask, p).transpose(1, 2).reshape(x.shape)
    attended = F.dropout(F.linear(mixed, w["out_proj_weight"], w["out_proj_bias"]), p)
    a = F.layer_norm(s + attended, (width,), w["norm1_weight"], w["norm1_bias"], eps)
    hidden = F.dropout(F.linear(a, w["linear1_weight"], w["linear1_bias"]).relu(), p)
    fed = F.dropout(F.linear(hidden, w["linear2_weight"], w["linear2_bias"]), p)
    return F.layer_norm(a + fed, (width,), w["norm2_weight"], w["norm2_bias"], eps), u, None


def local_encoder_layer(
    x: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor,
    linear1_weight: Tensor,
    linear1_bias: Tensor,
    linear2_weight: Tensor,
    linear2_bias: Tensor,
    norm1_weight: Tensor,
    norm1_bias: Tensor,
    norm2_weight: Tensor,
    norm2_bias: Tensor,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    *,
    heads: int,
    mask: Tensor | None = None,
    is_causal: bool = False,
    dropout: float = 0.0,
    eps: float = 1e-5,
    memory: str = "auto",
    return_conv: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """LocalFormer's encoder layer: u = conv(x) over time, s = x + u, a = norm(s + attention(s)), y = norm(a + ffn(a)) with a ReLU in the
    FFN; without a convolution s = x, the post-norm layer of `torch.nn.TransformerEncoderLayer`.

    The kernels take a few samples at a time through the whole layer: neither the scores [B, heads, T, T] nor the FFN's hidden values
    [B, T, f] are ever a tensor.

    Args:
        x: [B, T, d] floating point.
        in_proj_weight, in_proj_bias: [3d, d], [3d], of queries, keys and values.
        out_proj_weight, out_proj_bias: [d, d], [d].
        linear1_weight, linear1_bias, linear2_weight, linear2_bias: [f, d], [f], [d, f], [d], of the FFN.
        norm1_weight, norm1_bias, norm2_weight, norm2_bias: [d] each.
        conv_weight, conv_bias: [d, d, 3], [d], or both None.
        heads: divides d.
        mask: [T, T], added to the scores (-inf: not attended to), without gradient; or None.
        is_causal: a step attends to itself and those before it; adds to `mask`.
        dropout: probability, at the places where torch's layer has it (attention weights, attention's output, hidden values, FFN's
            output); 0 in evaluation. The masks come from a counter-based generator seeded by torch's: they do not depend on the number
            of threads.
        eps: of both norms.
        memory: "auto" keeps four tensors of x's size for the backward pass; "low" keeps x alone and computes the rest again.
        return_conv: whether u is returned; needs a convolution.

    Returns:
        y [B, T, d] in x's dtype; (y, u) with `return_conv`.

    T beyond 512, on a GPU d beyond 256 (512 in half precision), and tensors that there is no kernel for, run on torch's own; `explain`
    says so.

    Raises:
        TypeError: x is not floating point; parameters of another dtype.
        ValueError: shapes that do not fit; heads that do not divide d; a mask with gradient; dropout outside of [0, 1].

    Source: Vaswani et al. 2017, arXiv:1706.03762; Qlib's pytorch_localformer.
    """
    given = (conv_weight is not None) + (conv_bias is not None)
    op = "local_encoder_layer"
    _checks.require(given != 1, op, "conv_weight and conv_bias", "given together", "one of them")
    _checks.require(given == 2 or not return_conv, op, "conv_weight", "given where return_conv is", None)
    weights = [in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias, linear1_weight, linear1_bias]
    weights += [linear2_weight, linear2_bias, norm1_weight, norm1_bias, norm2_weight, norm2_bias]
    weights += [conv_weight, conv_bias] if given else []
    x, mask, *weights = _checks.autocast(x, mask, *weights)
    _check(x, weights, mask, heads, dropout, memory)
    steps = x.shape[1]
    if is_causal:
        causal = causal_mask(steps, x)
        mask = causal if mask is None else mask + causal
    seed = _random.draw_seed(x.device) if dropout > 0 else None
    keep = memory == "auto" and torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights))
    want_u = given == 2 and (return_conv or keep)
    y, u, _ = _backend.run(
        LOCAL_ENCODER_LAYER,
        reference.local_encoder_layer,
        x,
        x,
        weights,
        mask,
        seed,
        heads,
        float(dropout),
        float(eps),
        want_u,
        keep,
        torch_is_better=lambda: _torch_is_better(x),
        native=_by_torch,
    )
    return (y, u) if return_conv else y
