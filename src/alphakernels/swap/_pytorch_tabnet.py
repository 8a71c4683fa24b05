"""pytorch-tabnet's modules on the kernels: same parameters, same virtual batches, same numbers."""

from __future__ import annotations

import weakref
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..ops.attentive_mask.op import AttentiveMask
from ..ops.ghost_batch_norm.reference import chunk_sizes
from ._qlib_tabnet import batch_norm_obstacle, with_neighbours
from ._swapped import Swapped, Used

# pytorch-tabnet rounds it to float32 whatever the dtype of the rest.
_HALF_SQRT = torch.tensor(0.5, dtype=torch.float32).sqrt().item()


@lru_cache(maxsize=256)
def virtual_batches(rows: int, virtual_batch_size: int) -> tuple[int, int] | None:
    """pytorch-tabnet cuts `rows` into ceil(rows / virtual_batch_size) pieces, the kernels into rows // size.

    Returns:
        The size that makes the kernels cut at the same places, and the number of pieces; None where there is none.
    """
    pieces = max(1, -(-rows // virtual_batch_size))
    size = -(-rows // pieces)
    wanted = [size] * (rows // size) + ([rows % size] if rows % size else []) if rows else [0]
    for candidate in {virtual_batch_size, max(1, rows // pieces), max(1, size)}:
        if chunk_sizes(rows, candidate) == wanted:
            return candidate, len(wanted)
    return None


class GBN(Swapped):
    def uses(self) -> Used:
        return (("bn", self.bn, nn.BatchNorm1d),)

    def obstacle(self) -> str | None:
        return batch_norm_obstacle(self.bn)

    def norm_arguments(self, rows: int) -> dict | None:
        """For the ops; None where they cannot cut the batch as pytorch-tabnet does."""
        bn = self.bn
        cut = virtual_batches(rows, self.virtual_batch_size) if bn.training else (max(1, rows), 1)
        return cut and dict(
            weight=bn.weight,
            bias=bn.bias,
            running_mean=bn.running_mean,
            running_var=bn.running_var,
            virtual_batch_size=cut[0],
            training=bn.training,
            momentum=bn.momentum,
            eps=bn.eps,
        )

    def count_batches(self, rows: int) -> None:
        if self.bn.training:
            self.bn.num_batches_tracked.add_(virtual_batches(rows, self.virtual_batch_size)[1])

    def fast(self, x: Tensor) -> Tensor:
        norm = self.norm_arguments(len(x))
        if norm is None:
            return self.slow(x)
        y = ops.ghost_batch_norm(x, **norm)
        self.count_batches(len(x))
        return y


class GLULayer(Swapped):
    def uses(self) -> Used:
        return ("fc", self.fc, nn.Linear), ("bn", self.bn, Swapped), ("bn.bn", self.bn.bn, nn.BatchNorm1d)

    def fast(self, x: Tensor, residual: Tensor | None = None, scale: float = 1.0) -> Tensor:
        norm = self.bn.norm_arguments(len(x))
        if norm is None:
            return self.slow(x, residual, scale)
        u = F.linear(x, self.fc.weight)  # [B, 2 * output_dim]; the bias, if any, goes into the kernel
        out = ops.glu_block(u, **norm, linear_bias=self.fc.bias, residual=residual, scale=scale)
        self.bn.count_batches(len(x))
        return out

    def slow(self, x: Tensor, residual: Tensor | None = None, scale: float = 1.0) -> Tensor:
        out = super().slow(x)
        return out if residual is None else (residual + out) * scale


class GLUBlock(Swapped):
    def uses(self) -> Used:
        for number, layer in enumerate(self.glu_layers):
            yield f"glu_layers.{number}", layer, Swapped

    def fast(self, x: Tensor) -> Tensor:
        layers = list(self.glu_layers)
        if self.first:  # of another width than x: no residual
            x = layers.pop(0)(x)
        for layer in layers:
            x = layer(x, residual=x, scale=_HALF_SQRT)
        return x


class AttentiveTransformer(Swapped):
    def uses(self) -> Used:
        return (
            ("fc", self.fc, nn.Linear),
            ("bn", self.bn, Swapped),
            ("bn.bn", self.bn.bn, nn.BatchNorm1d),
            ("selector", self.selector, Swapped),
        )

    def attend(self, priors: Tensor, processed_feat: Tensor, relax: float, eps: float) -> AttentiveMask:
        """The mask with its entropy and the prior of the next step."""
        norm = self.bn.norm_arguments(len(processed_feat)) if self.is_plain() else None
        if norm is None:
            return with_neighbours(self.slow(priors, processed_feat), priors, relax, eps)
        logits = F.linear(processed_feat, self.fc.weight)  # [B, groups]
        logits = ops.ghost_batch_norm(logits, **norm, linear_bias=self.fc.bias)
        self.bn.count_batches(len(processed_feat))
        return ops.attentive_mask(logits, priors.to(logits.dtype), relax, update_prior=True, eps=eps)

    def fast(self, priors: Tensor, processed_feat: Tensor) -> Tensor:
        return self.attend(priors, processed_feat, 1.0, 0.0).mask


# By encoder: the group matrix that was looked at, and whether it is the identity, which needs no product.
_identity: weakref.WeakKeyDictionary[nn.Module, tuple[weakref.ref, int, bool]] = weakref.WeakKeyDictionary()


def _is_identity(encoder: nn.Module, matrix: Tensor) -> bool:
    if torch.compiler.is_compiling():
        return False
    known = _identity.get(encoder)
    if known is None or known[0]() is not matrix or known[1] != matrix._version:
        square = matrix.shape[0] == matrix.shape[1]
        found = square and torch.equal(matrix, torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device))
        known = _identity[encoder] = (weakref.ref(matrix), matrix._version, found)
    return known[2]


class TabNetEncoder(Swapped):
    def uses(self) -> Used:
        for number, attention in enumerate(self.att_transformers):
            yield f"att_transformers.{number}", attention, Swapped

    def fast(self, x: Tensor, prior: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        x = self.initial_bn(x)
        matrix = self.group_attention_matrix
        groups = None if _is_identity(self, matrix) else matrix
        if prior is None:
            prior = x.new_ones(len(x), self.attention_dim)
        entropy = 0
        attention_input = self.initial_splitter(x)[:, self.n_d :]  # [B, n_a]
        outputs = []
        for attention, transformer in zip(self.att_transformers, self.feat_transformers, strict=True):
            mask, step_entropy, prior = attention.attend(prior, attention_input, self.gamma, self.epsilon)
            entropy = entropy - step_entropy * mask.shape[1]
            out = transformer(x * (mask if groups is None else mask @ groups))  # [B, n_d + n_a]
            outputs.append(F.relu(out[:, : self.n_d]))
            attention_input = out[:, self.n_d :]
        return outputs, entropy / self.n_steps
