"""attentive_mask: sparsemax with TabNet's neighbours in one pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _backend, _checks
from .._library import Formula, define
from . import reference

_TRITON = "alphakernels.ops.attentive_mask.triton"


class AttentiveMask(NamedTuple):
    """What `attentive_mask` returns."""

    mask: Tensor  # [B, D], rows sum to one
    entropy: Tensor  # 0-d, mean over all B * D entries of -mask * log(mask + eps)
    new_prior: Tensor | None  # [B, D] when asked for


def _fake(logits: Tensor, prior: Tensor, relax: float, update_prior: bool, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    rows, features = logits.shape
    return logits.new_empty(rows, features), logits.new_empty(rows), logits.new_empty(rows if update_prior else 0, features)


def _setup(ctx, inputs, output) -> None:
    logits, prior, ctx.relax, ctx.update_prior, ctx.eps = inputs
    ctx.prior_needs_grad = ctx.needs_input_grad[1]
    # The prior's gradient alone asks for the logits; without it they are not kept.
    ctx.save_for_backward(logits if ctx.prior_needs_grad else prior, prior, output[0])
    ctx.set_materialize_grads(False)


def _backward(ctx, ops, grad_mask: Tensor | None, grad_entropy: Tensor | None, grad_new_prior: Tensor | None):
    logits, prior, mask = ctx.saved_tensors
    grad_mask = torch.zeros_like(mask) if grad_mask is None else grad_mask
    if not ctx.update_prior:  # new_prior is empty then, and so is the gradient that may come for it
        grad_new_prior = None
    dlogits, dprior = ops.attentive_mask_backward(
        grad_mask, grad_entropy, grad_new_prior, logits, prior, mask, ctx.relax, ctx.eps, ctx.prior_needs_grad
    )
    return dlogits, dprior if ctx.prior_needs_grad else None, None, None, None


ATTENTIVE_MASK = define(
    "attentive_mask",
    "(Tensor logits, Tensor prior, float relax, bool update_prior, float eps) -> (Tensor, Tensor, Tensor)",
    fake=_fake,
    formula=Formula(_setup, _backward),
    triton=_TRITON,
)
define(
    "attentive_mask_backward",
    "(Tensor grad_mask, Tensor? grad_entropy, Tensor? grad_new_prior, Tensor logits, Tensor prior, Tensor mask, float relax, "
    "float eps, bool prior_needs_grad) -> (Tensor, Tensor)",
    fake=lambda gm, ge, gp, logits, prior, mask, relax, eps, prior_needs_grad: (
        torch.empty_like(mask, memory_format=torch.contiguous_format),
        mask.new_empty(mask.shape[0] if prior_needs_grad else 0, mask.shape[1]),
    ),
    triton=_TRITON,
)


def attentive_mask(
    logits: Tensor, prior: Tensor, relax: float = 1.3, *, update_prior: bool = False, eps: float = 1e-10
) -> AttentiveMask:
    """TabNet's feature mask: `sparsemax(logits * prior)`, its entropy, and the prior of the next step, in one pass a row.

    Args:
        logits: [B, D] floating point, the normalised output of the attentive transformer's linear layer.
        prior: [B, D] of the same dtype and device, how freely each feature may still be used (ones at the first step).
        relax: the paper's gamma: 1 lets a feature be used once, larger values more often.
        update_prior: also return `prior * (relax - mask)`.
        eps: added inside the entropy's logarithm.

    Returns:
        `AttentiveMask(mask [B, D], entropy 0-d, new_prior [B, D] or None)`; entropy is the mean over all entries of
        `-mask * log(mask + eps)`, as Qlib and the paper take it.

    Raises:
        TypeError, ValueError: wrong dtype, rank, or a prior that does not match.

    Source: Arik & Pfister, "TabNet", 2019, arXiv:1908.07442, section 3.2; Qlib's AttentionTransformer and DecisionStep.
    """
    op = "attentive_mask"
    _checks.require_float(op, "logits", logits)
    _checks.require_rank(op, "logits", logits, 2, "[B, D]")
    logits, prior = _checks.autocast(logits, prior)
    _checks.require_like(op, "prior", prior, logits, tuple(logits.shape))
    mask, entropy, new_prior = _backend.run(
        ATTENTIVE_MASK, reference.attentive_mask, logits, logits, prior, float(relax), update_prior, float(eps)
    )
    return AttentiveMask(mask, entropy.sum() / max(mask.numel(), 1), new_prior if update_prior else None)
