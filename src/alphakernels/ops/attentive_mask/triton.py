"""TabNet's attentive mask on the GPU: sparsemax(logits * prior), its entropy and the next prior from one tile of rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ghost_batch_norm.triton import dense
from ..sparsemax import triton as _sparsemax
from ..sparsemax.triton import centre_on_support, project, tile


@triton.jit
def _forward(logits, prior, mask, entropy, new_prior, rows, n, relax, eps, UPDATE: tl.constexpr, ROWS: tl.constexpr,
             BLOCK: tl.constexpr):  # fmt: skip
    rows_here = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    there = (rows_here[:, None] < rows) & (column < n)
    at = rows_here[:, None] * n + column
    q = tl.load(prior + at, there, 0.0).to(tl.float32)
    p = project(tl.load(logits + at, there, 0.0).to(tl.float32) * q, column < n)
    tl.store(mask + at, p, there)
    h = tl.sum(tl.where(column < n, -p * tl.log(p + eps), 0.0), 1)
    tl.store(entropy + rows_here, h, rows_here < rows)
    if UPDATE:
        tl.store(new_prior + at, q * (relax - p), there)


@triton.jit
def _backward(grad_mask, grad_entropy, grad_new_prior, logits, prior, mask, dlogits, dprior, rows, n, relax, eps,
              ENTROPY: tl.constexpr, UPDATE: tl.constexpr, PRIOR: tl.constexpr, ROWS: tl.constexpr,
              BLOCK: tl.constexpr):  # fmt: skip
    rows_here = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    there = (rows_here[:, None] < rows) & (column < n)
    at = rows_here[:, None] * n + column
    p = tl.load(mask + at, there, 0.0).to(tl.float32)
    q = tl.load(prior + at, there, 0.0).to(tl.float32)
    g = tl.load(grad_mask + at, there, 0.0).to(tl.float32)
    if ENTROPY:
        ge = tl.load(grad_entropy + rows_here, rows_here < rows, 0.0).to(tl.float32)[:, None]
        g -= ge * (tl.log(p + eps) + p / (p + eps))
    if UPDATE:
        gq = tl.load(grad_new_prior + at, there, 0.0).to(tl.float32)
        g -= gq * q
    dz = centre_on_support(tl.where(there, g, 0.0), p)
    tl.store(dlogits + at, dz * q, there)
    if PRIOR:
        dq = dz * tl.load(logits + at, there, 0.0).to(tl.float32)
        if UPDATE:
            dq += gq * (relax - p)
        tl.store(dprior + at, dq, there)


def attentive_mask(
    logits: Tensor, prior: Tensor, relax: float, update_prior: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(mask [B, D], entropy [B], new prior [B, D] or [0, D])."""
    logits, prior = dense(logits, prior)
    rows, n = logits.shape
    if n > _sparsemax.MAX_TILE:  # no TabNet is so wide; the pieces serve
        mask = _sparsemax.sparsemax(logits * prior)
        new_prior = prior * (relax - mask) if update_prior else logits.new_empty(0, n)
        return mask, (-mask * torch.log(mask + eps)).sum(1), new_prior
    mask, entropy = torch.empty_like(logits), logits.new_empty(rows)
    new_prior = logits.new_empty(rows if update_prior else 0, n)
    if logits.numel():
        shape = tile(n)
        grid = (triton.cdiv(rows, shape["ROWS"]),)
        _forward[grid](logits, prior, mask, entropy, new_prior, rows, n, relax, eps, UPDATE=update_prior, **shape)
    return mask, entropy, new_prior


def attentive_mask_backward(
    grad_mask: Tensor,
    grad_entropy: Tensor | None,
    grad_new_prior: Tensor | None,
    logits: Tensor,
    prior: Tensor,
    mask: Tensor,
    relax: float,
    eps: float,
    prior_needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    """(gradient of the logits [B, D], of the prior [B, D] or [0, D])."""
    rows, n = mask.shape
    grad_mask, grad_entropy, grad_new_prior, logits, prior, mask = dense(grad_mask, grad_entropy, grad_new_prior, logits, prior, mask)
    if n > _sparsemax.MAX_TILE:
        g = grad_mask
        if grad_entropy is not None:
            g = g - grad_entropy[:, None] * (torch.log(mask + eps) + mask / (mask + eps))
        if grad_new_prior is not None:
            g = g - grad_new_prior * prior
        dz = _sparsemax.sparsemax_backward(g, mask)
        dprior = dz * logits if prior_needs_grad else mask.new_empty(0, n)
        if prior_needs_grad and grad_new_prior is not None:
            dprior = dprior + grad_new_prior * (relax - mask)
        return dz * prior, dprior
    dlogits, dprior = torch.empty_like(mask), mask.new_empty(rows if prior_needs_grad else 0, n)
    if mask.numel():
        shape = tile(n)
        _backward[(triton.cdiv(rows, shape["ROWS"]),)](
            grad_mask,
            grad_mask if grad_entropy is None else grad_entropy,
            grad_mask if grad_new_prior is None else grad_new_prior,
            logits,
            prior,
            mask,
            dlogits,
            dprior,
            rows,
            n,
            relax,
            eps,
            ENTROPY=grad_entropy is not None,
            UPDATE=grad_new_prior is not None,
            PRIOR=prior_needs_grad,
            **shape,
        )
    return dlogits, dprior


_FLOATS = {"rows": "i32", "n": "i32", "relax": "fp32", "eps": "fp32"}
AOT = [
    (
        _forward,
        {**{k: "*fp32" for k in ("logits", "prior", "mask", "entropy", "new_prior")}, **_FLOATS},
        {"UPDATE": True, "ROWS": 8, "BLOCK": 256},
        4,
    ),
    (
        _backward,
        {
            **{k: "*fp32" for k in ("grad_mask", "grad_entropy", "grad_new_prior", "logits", "prior", "mask", "dlogits", "dprior")},
            **_FLOATS,
        },
        {"ENTROPY": True, "UPDATE": True, "PRIOR": True, "ROWS": 8, "BLOCK": 256},
        4,
    ),
]
