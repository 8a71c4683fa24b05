"""Qlib's TabNet modules on the modules of `alphakernels.nn`, which have their parameters under the same names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import models
from .. import nn as ours
from ..ops.attentive_mask.op import AttentiveMask
from ._swapped import Swapped, Used


class GBN(Swapped, ours.GhostBatchNorm):
    fast = ours.GhostBatchNorm.forward

    def uses(self) -> Used:
        return (("bn", self.bn, nn.BatchNorm1d),)

    def obstacle(self) -> str | None:
        return batch_norm_obstacle(self.bn)

    def slow(self, x: Tensor, linear_bias: Tensor | None = None) -> Tensor:
        return super().slow(x if linear_bias is None else x + linear_bias)


def batch_norm_obstacle(bn: nn.BatchNorm1d) -> str | None:
    """Why the kernels cannot take the place of this norm."""
    if bn.momentum is None:
        return "its batch norm has momentum=None, a cumulative average"
    if bn.running_mean is None or bn.weight is None:
        return "its batch norm has no running statistics or no weights"
    return None


class GLU(Swapped, ours.GLU):
    fast = ours.GLU.forward

    def uses(self) -> Used:
        return ("fc", self.fc, nn.Linear), ("bn", self.bn, Swapped), ("bn.bn", self.bn.bn, nn.BatchNorm1d)

    def slow(self, x: Tensor, residual: Tensor | None = None, scale: float = 1.0, mask: Tensor | None = None) -> Tensor:
        out = super().slow(x if mask is None else x * mask)
        return out if residual is None else (residual + out) * scale


class FeatureTransformer(Swapped, ours.FeatureTransformer):
    fast = ours.FeatureTransformer.forward

    def uses(self) -> Used:
        for name in ("shared", "independ"):
            for number, block in enumerate(getattr(self, name) or ()):
                yield f"{name}.{number}", block, Swapped

    def slow(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().slow(x if mask is None else x * mask)


class AttentionTransformer(Swapped, ours.AttentiveTransformer):
    fast = ours.AttentiveTransformer.forward

    def uses(self) -> Used:
        return ("fc", self.fc, nn.Linear), ("bn", self.bn, Swapped), ("bn.bn", self.bn.bn, nn.BatchNorm1d)

    def attend(self, a: Tensor, priors: Tensor, update_prior: bool = False) -> AttentiveMask:
        if self.is_plain():
            return super().attend(a, priors, update_prior)
        return with_neighbours(self.slow(a, priors), priors, self.r if update_prior else None, 1e-10)


def with_neighbours(mask: Tensor, priors: Tensor, relax: float | None, eps: float) -> AttentiveMask:
    """What `ops.attentive_mask` returns, for a mask that is there already."""
    entropy = (-mask * torch.log(mask + eps)).mean()
    return AttentiveMask(mask, entropy, None if relax is None else priors * (relax - mask))


class DecisionStep(Swapped, ours.DecisionStep):
    fast = ours.DecisionStep.forward

    def uses(self) -> Used:
        return ("atten_tran", self.atten_tran, Swapped), ("fea_tran", self.fea_tran, Swapped)

    def step(self, x: Tensor, a: Tensor, priors: Tensor, update_prior: bool = False) -> tuple[Tensor, AttentiveMask]:
        if self.is_plain():
            return super().step(x, a, priors, update_prior)
        transformed, entropy = self.slow(x, a, priors)
        return transformed, AttentiveMask(priors, entropy, None)  # Qlib's network asks for the entropy alone


class TabNet(Swapped, models.TabNet):
    fast = models.TabNet.forward
    variant = "qlib"

    @property
    def inp_dim(self) -> int:
        return self.bn.num_features

    def uses(self) -> Used:
        yield "bn", self.bn, nn.BatchNorm1d
        yield "first_step", self.first_step, Swapped
        for number, step in enumerate(self.steps):
            yield f"steps.{number}", step, Swapped

    def obstacle(self) -> str | None:
        return batch_norm_obstacle(self.bn)
