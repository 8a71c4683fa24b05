"""TabNet (Arik & Pfister 2019, arXiv:1908.07442): encoder, decoder for pretraining, and encoder with a head, with the
constructors, the order of parameter creation and the state_dict names of Qlib's `TabNet`, `TabNet_Decoder`, `FinetuneModel`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..nn import DecisionStep, FeatureTransformer

VARIANTS = ("qlib", "paper")
_WHOLE_BATCH = 2**62  # rows of a virtual batch that no batch reaches


def _shared_layers(inp_dim: int, out_dim: int, n_shared: int) -> nn.ModuleList | None:
    """Linear layers [inp_dim -> 2 out_dim], then [out_dim -> 2 out_dim], used by every feature transformer."""
    if n_shared <= 0:
        return None
    shared = nn.ModuleList([nn.Linear(inp_dim, 2 * out_dim)])
    for _ in range(n_shared - 1):
        shared.append(nn.Linear(out_dim, 2 * out_dim))
    return shared


class TabNet(nn.Module):
    """The TabNet encoder.

    Args:
        inp_dim: number of features D.
        out_dim: columns of the output.
        n_d, n_a: columns of each step that go to the decision and to the attention of the next step.
        n_shared, n_ind: shared and own GLU blocks of a feature transformer.
        n_steps: steps, the first of which has no attention of its own.
        relax: the paper's gamma.
        vbs: virtual batch size.
        variant: "qlib" reproduces Qlib's arithmetic, in which the priors are never updated; "paper" multiplies them by
            (relax - mask) after each step.

    Shapes: x [B, D], priors [B, D] (ones; 1 - mask in pretraining) -> (vec [B, out_dim], sparsity loss 0-d, the sum over steps of
    each mask's mean entropy).

    Raises:
        ValueError: unknown variant; x or priors whose columns are not inp_dim.
    """

    def __init__(
        self,
        inp_dim: int = 6,
        out_dim: int = 6,
        n_d: int = 64,
        n_a: int = 64,
        n_shared: int = 2,
        n_ind: int = 2,
        n_steps: int = 5,
        relax: float = 1.2,
        vbs: int = 1024,
        variant: str = "qlib",
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"TabNet: variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
        self.shared = _shared_layers(inp_dim, n_d + n_a, n_shared)
        self.first_step = FeatureTransformer(inp_dim, n_d + n_a, self.shared, n_ind, vbs)
        self.steps = nn.ModuleList()
        for _ in range(n_steps - 1):
            self.steps.append(DecisionStep(inp_dim, n_d, n_a, self.shared, n_ind, relax, vbs))
        self.fc = nn.Linear(n_d, out_dim)
        self.bn = nn.BatchNorm1d(inp_dim, momentum=0.01)
        self.n_d = n_d
        self.inp_dim = inp_dim
        self.variant = variant

    def _check(self, x: Tensor, priors: Tensor) -> None:
        for name, tensor in (("x", x), ("priors", priors)):
            if tensor.dim() != 2 or tensor.shape[1] != self.inp_dim:
                raise ValueError(f"TabNet: {name} must be of shape [B, {self.inp_dim}], got {list(tensor.shape)}")

    def _normalise(self, x: Tensor) -> Tensor:
        """`self.bn(x)` by the op: torch's own batch norm gives other bits with another number of threads."""
        bn = self.bn
        y = ops.ghost_batch_norm(
            x,
            bn.weight,
            bn.bias,
            bn.running_mean,
            bn.running_var,
            virtual_batch_size=_WHOLE_BATCH,
            training=bn.training,
            momentum=bn.momentum,
            eps=bn.eps,
        )
        if bn.training:
            bn.num_batches_tracked.add_(1)
        return y

    def _steps(self, x: Tensor, priors: Tensor):
        """Yields, step by step, the transformed features [B, n_d + n_a] and the mask with its neighbours."""
        self._check(x, priors)
        x = self._normalise(x)
        attention_input = self.first_step(x)[:, self.n_d :]  # [B, n_a]
        update = self.variant == "paper"
        for step in self.steps:
            transformed, attention = step.step(x, attention_input, priors, update)
            attention_input = transformed[:, self.n_d :]
            priors = attention.new_prior if update else priors
            yield transformed, attention

    def forward(self, x: Tensor, priors: Tensor) -> tuple[Tensor, Tensor]:
        out = x.new_zeros(x.shape[0], self.n_d)
        sparse_loss = x.new_zeros(())
        for transformed, attention in self._steps(x, priors):
            out = out + F.relu(transformed[:, : self.n_d])
            sparse_loss = sparse_loss + attention.entropy
        return self.fc(out), sparse_loss

    def masks(self, x: Tensor, priors: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The mask of every step, [B, D] each, and the step's weight in the decision, [B] each: the sum of its positive decision
        outputs (the paper's eta, section 3.3). Importances are weighted sums of the masks."""
        masks, weights = [], []
        for transformed, attention in self._steps(x, priors):
            masks.append(attention.mask)
            weights.append(F.relu(transformed[:, : self.n_d]).sum(1))
        return masks, weights


class DecoderStep(nn.Module):
    """One step of the decoder: a feature transformer and a linear layer; x [B, inp_dim] -> [B, out_dim]."""

    def __init__(self, inp_dim: int, out_dim: int, shared: nn.ModuleList | None, n_ind: int, vbs: int) -> None:
        super().__init__()
        self.fea_tran = FeatureTransformer(inp_dim, out_dim, shared, n_ind, vbs)
        self.fc = nn.Linear(out_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.fea_tran(x))


class TabNetDecoder(nn.Module):
    """Reconstructs the features from the encoder's output, for pretraining; Qlib's `TabNet_Decoder`.

    Args:
        inp_dim: columns of the encoder's output.
        out_dim: number of features D.
        n_shared, n_ind, vbs, n_steps: as in `TabNet`.

    Shapes: x [B, inp_dim] -> [B, out_dim].
    """

    def __init__(self, inp_dim: int, out_dim: int, n_shared: int, n_ind: int, vbs: int, n_steps: int) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.shared = _shared_layers(inp_dim, out_dim, n_shared)
        self.n_steps = n_steps
        self.steps = nn.ModuleList()
        for _ in range(n_steps):
            self.steps.append(DecoderStep(inp_dim, out_dim, self.shared, n_ind, vbs))

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(x.shape[0], self.out_dim)
        for step in self.steps:
            out = out + step(x)
        return out


class TabNetFinetune(nn.Module):
    """The encoder with a linear head; Qlib's `FinetuneModel`.

    Args:
        input_dim: columns of the encoder's output.
        output_dim: outputs per row.
        trained_model: a `TabNet`.

    Shapes: x [B, D], priors [B, D] -> [B] where output_dim is 1 (of one row too, where Qlib's becomes 0-d), else [B, output_dim].
    """

    def __init__(self, input_dim: int, output_dim: int, trained_model: TabNet) -> None:
        super().__init__()
        self.model = trained_model
        self.fc = nn.Linear(input_dim, output_dim)

    def forward(self, x: Tensor, priors: Tensor) -> Tensor:
        return self.fc(self.model(x, priors)[0]).squeeze(1)
