"""`accelerate` on a model in memory: a training step of pytorch-tabnet's network, and of a hand-made one on torch's GRU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from alphakernels import accelerate


def stepper(model: nn.Module, x: torch.Tensor, y: torch.Tensor):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()

    def step():
        optimizer.zero_grad(set_to_none=True)
        out = model(x)
        out = out[0] if isinstance(out, tuple) else out
        (out.squeeze(-1) - y).square().mean().backward()
        optimizer.step()

    return step


@pytest.mark.parametrize("batch", [4096])
def test_pytorch_tabnet(compare, device, batch) -> None:
    tab_network = pytest.importorskip("pytorch_tabnet.tab_network")
    torch.manual_seed(0)
    groups = torch.eye(158, device=device)
    theirs = tab_network.TabNet(158, 1, n_d=64, n_a=64, n_steps=5, virtual_batch_size=256, group_attention_matrix=groups).to(device)
    ours = copy.deepcopy(theirs)
    accelerate(ours)
    x, y = torch.randn(batch, 158, device=device), torch.randn(batch, device=device)
    compare(f"accelerate pytorch-tabnet B {batch} training step", stepper(ours, x, y), {"as it was": stepper(theirs, x, y)})


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(6, 64, 2, batch_first=True)
        self.out = nn.Linear(64, 1)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


def test_torch_gru(compare, device) -> None:
    torch.manual_seed(0)
    theirs = Recurrent().to(device)
    ours = copy.deepcopy(theirs)
    accelerate(ours)
    x, y = torch.randn(800, 60, 6, device=device), torch.randn(800, device=device)
    compare("accelerate torch GRU B 800 T 60 training step", stepper(ours, x, y), {"as it was": stepper(theirs, x, y)})
