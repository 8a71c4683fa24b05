"""TabNet's pretraining: hide some features of each row, and reconstruct them from the others.

Arik & Pfister 2019, arXiv:1908.07442, "Tabular self-supervised learning". The masks are drawn as Qlib draws them,
from torch's global CPU stream and batch by batch, also while evaluating, so that a seed gives the same masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from alphakernels.data import Batch, RowBatches
from alphakernels.data.gather import sent
from alphakernels.training.batches import Batches


class Pretraining(nn.Module):
    """Encoder and decoder in one module.

    Args:
        encoder: (x [B, D], priors [B, D]) -> (vector [B, out_dim], sparsity).
        decoder: vector [B, out_dim] -> [B, D].
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Reconstruction [B, D] of x [B, D] from the entries where `hidden` [B, D] is 0."""
        seen = 1 - hidden
        vector, _ = self.encoder(x * seen, seen)
        return self.decoder(vector)


class TailJoined:
    """Batches with a short last one joined to the one before.

    The loss divides by the spread of a batch's columns, which says nothing in a batch of two rows; so the rows that
    are left over go with the last full batch.
    """

    def __init__(self, batches: RowBatches) -> None:
        self._batches = batches
        self._short = len(batches) > 1 and batches.n_rows < len(batches) * batches.batch_size

    def __len__(self) -> int:
        return len(self._batches) - self._short

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self._batches)
        for _ in range(len(self) - self._short):
            yield next(batches)
        if self._short:
            last, tail = batches
            yield Batch(torch.cat([last.x, tail.x]), None, np.concatenate([last.rows, tail.rows]))


class Hiding:
    """Batches with the mask of what each one hides, [B, D] of 0 and 1 in `extras["hidden"]`. It is drawn as the batch is taken, not in the
    step, so that a step can be captured.

    Args:
        batches: whose features are [B, D].
        draw: (rows, features) -> mask, on the CPU.
    """

    def __init__(self, batches: Batches, draw: Callable[[int, int], Tensor]) -> None:
        self._batches = batches
        self._draw = draw

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._batches:
            hidden = self._draw(*batch.x.shape).numpy()
            yield replace(batch, extras=batch.extras | {"hidden": sent(hidden, batch.x.device).to(batch.x.dtype)})


def draw_hidden(rows: int, features: int, probability: float) -> Tensor:
    """Which entries to hide: [rows, features] of 0 and 1, from torch's global CPU stream."""
    return torch.bernoulli(torch.full((rows, features), probability))


def draw_hidden_for_evaluation(rows: int, features: int, probability: float, batch_size: int) -> Tensor:
    """The same for an evaluated batch; rows that Qlib does not evaluate take nothing from the global stream.

    Qlib evaluates full batches only. Masks for other rows come from a copy of the stream, so that the
    training which follows sees the same masks whether or not they are evaluated.
    """
    full = batch_size if rows >= batch_size else 0
    masks = [draw_hidden(full, features, probability)] if full else []
    if rows > full:
        copy = torch.Generator()
        copy.set_state(torch.get_rng_state())
        masks.append(torch.bernoulli(torch.full((rows - full, features), probability), generator=copy))
    return torch.cat(masks)


def reconstruction_loss(x: Tensor, hidden: Tensor, reconstruction: Tensor, variant: str) -> Tensor:
    """Squared error of the hidden entries over the squared spread of their column, summed over the batch.

    Args:
        x, hidden, reconstruction: [B, D].
        variant: "paper" measures the spread of the data, "qlib" that of the reconstruction, because the original
            hands its arguments over in the wrong order.

    Returns:
        0-d tensor. A column without spread counts with its squared error as it is.
    """
    of = reconstruction if variant == "qlib" else x
    mean = of.mean(dim=0)
    spread = (of - mean).square().sum(dim=0)  # [D]
    # The mean of a constant column is rounded, so its computed spread may be tiny instead of zero.
    rounding = 4 * torch.finfo(of.dtype).eps * of.detach().abs().amax(dim=0)
    constant = spread <= len(of) * rounding.square()
    spread = torch.where(constant, 1.0, spread)
    return (((x - reconstruction) * hidden).square() / spread).sum()
