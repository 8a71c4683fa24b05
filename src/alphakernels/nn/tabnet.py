"""The blocks of TabNet (Arik & Pfister 2019, arXiv:1908.07442), with the constructors, the order of parameter creation and the
state_dict names of Qlib's classes: the same seed gives bitwise the same weights, and checkpoints load both ways.

A GLU with its linear layer is one op. The bias of a linear layer is left to the norm behind it, which cancels it in training: no
pass over the activations is spent on adding it or on summing its gradient, and that gradient is exactly zero instead of rounding
noise (which Adam would scale up to full steps). In evaluation the norm is folded away: into the linear layer of the attentive
transformer, where that saves a pass, and into the gate's kernel in a GLU.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from .ghost_batch_norm import GhostBatchNorm

_HALF_SQRT = math.sqrt(0.5)


class GLU(nn.Module):
    """Linear layer, ghost batch norm, gated linear unit; takes the place of Qlib's `GLU`.

    Args:
        inp_dim, out_dim: columns in and out.
        fc: a linear layer [inp_dim -> 2 * out_dim] shared with other blocks, or None to make one.
        vbs: virtual batch size.

    Shapes: x [B, inp_dim] -> [B, out_dim]; with `residual`: `(x + glu(x)) * scale`; with `mask` [B, inp_dim]: of x * mask.
    """

    def __init__(self, inp_dim: int, out_dim: int, fc: nn.Linear | None = None, vbs: int = 1024) -> None:
        super().__init__()
        self.fc = fc if fc else nn.Linear(inp_dim, out_dim * 2)
        self.bn = GhostBatchNorm(out_dim * 2, vbs=vbs)
        self.od = out_dim

    def forward(self, x: Tensor, residual: bool = False, scale: float = 1.0, mask: Tensor | None = None) -> Tensor:
        # The linear layer's bias goes into the norm: in training it cancels there, in evaluation it is part of the one multiply-add
        # per element that the norm is. Folding the norm into the weight would save nothing more, and would cost seven small
        # operations a call, most of the latency of a small batch.
        norm = self.bn.norm_arguments()
        out = ops.glu_layer(x, self.fc.weight, **norm, linear_bias=self.fc.bias, mask=mask, residual=residual, scale=scale)
        self.bn.count_batches(x.shape[0])
        return out


class FeatureTransformer(nn.Module):
    """A stack of GLU blocks with scaled residuals, the first ones on shared linear layers; Qlib's `FeatureTransformer`.

    Args:
        inp_dim, out_dim: columns in and out.
        shared: the shared linear layers, or None.
        n_ind: number of GLU blocks of its own.
        vbs: virtual batch size.

    Shapes: x [B, inp_dim] -> [B, out_dim]; with `mask` [B, inp_dim]: of x * mask.
    """

    def __init__(self, inp_dim: int, out_dim: int, shared: nn.ModuleList | None, n_ind: int, vbs: int) -> None:
        super().__init__()
        first = True
        self.shared = nn.ModuleList()
        if shared:
            self.shared.append(GLU(inp_dim, out_dim, shared[0], vbs=vbs))
            first = False
            for fc in shared[1:]:
                self.shared.append(GLU(out_dim, out_dim, fc, vbs=vbs))
        else:
            self.shared = None
        self.independ = nn.ModuleList()
        if first:
            self.independ.append(GLU(inp_dim, out_dim, vbs=vbs))
        for _ in range(first, n_ind):
            self.independ.append(GLU(out_dim, out_dim, vbs=vbs))
        self.scale = _HALF_SQRT

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        blocks = [*(self.shared or ()), *self.independ]
        if self.shared or x.shape[1] != blocks[0].od:  # the first block of another width than x has no residual
            x, blocks = blocks[0](x, mask=mask), blocks[1:]
        elif mask is not None:
            x = x * mask
        for glu in blocks:
            x = glu(x, residual=True, scale=self.scale)
        return x


class AttentiveTransformer(nn.Module):
    """Chooses the features of the next step: linear layer, ghost batch norm, prior, sparsemax; Qlib's `AttentionTransformer`.

    Args:
        d_a: columns of the attention part of the step before.
        inp_dim: number of features D.
        relax: the paper's gamma, how often a feature may be used again.
        vbs: virtual batch size.

    Shapes: a [B, d_a], priors [B, D] -> mask [B, D].
    """

    def __init__(self, d_a: int, inp_dim: int, relax: float, vbs: int = 1024) -> None:
        super().__init__()
        self.fc = nn.Linear(d_a, inp_dim)
        self.bn = GhostBatchNorm(inp_dim, vbs=vbs)
        self.r = relax

    def attend(self, a: Tensor, priors: Tensor, update_prior: bool = False):
        """The mask with its neighbours: an `ops.attentive_mask` result (mask, entropy, new_prior or None)."""
        if self.bn.bn.training:
            logits = self.bn(ops.linear(a, self.fc.weight), linear_bias=self.fc.bias)  # [B, D]
        else:
            logits = F.linear(a, *self.bn.fold_into(self.fc))
        return ops.attentive_mask(logits, priors.to(logits.dtype), self.r, update_prior=update_prior)

    def forward(self, a: Tensor, priors: Tensor) -> Tensor:
        return self.attend(a, priors).mask


class DecisionStep(nn.Module):
    """One step of TabNet: attend to features, transform what is left; Qlib's `DecisionStep`.

    Args:
        inp_dim: number of features D.
        n_d, n_a: columns that go to the decision and to the next step's attention.
        shared, n_ind, vbs: as in `FeatureTransformer`.
        relax: as in `AttentiveTransformer`.

    Shapes: x [B, D], a [B, n_a], priors [B, D] -> (transformed [B, n_d + n_a], sparsity loss 0-d).
    """

    def __init__(self, inp_dim: int, n_d: int, n_a: int, shared: nn.ModuleList | None, n_ind: int, relax: float, vbs: int) -> None:
        super().__init__()
        self.atten_tran = AttentiveTransformer(n_a, inp_dim, relax, vbs)
        self.fea_tran = FeatureTransformer(inp_dim, n_d + n_a, shared, n_ind, vbs)

    def step(self, x: Tensor, a: Tensor, priors: Tensor, update_prior: bool = False):
        """(transformed [B, n_d + n_a], the `ops.attentive_mask` result of the step)."""
        attention = self.atten_tran.attend(a, priors, update_prior)
        return self.fea_tran(x, attention.mask), attention

    def forward(self, x: Tensor, a: Tensor, priors: Tensor) -> tuple[Tensor, Tensor]:
        transformed, attention = self.step(x, a, priors)
        return transformed, attention.entropy
