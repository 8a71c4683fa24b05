"""`accelerate` on a model in memory: a training step of pytorch-tabnet's network, of hand-made ones on torch's layers, of Qlib's GATs."""

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


class Encoded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 64)
        layer = nn.TransformerEncoderLayer(64, 2, dropout=0.1, batch_first=True)  # FFN 2048
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.rnn = nn.GRU(64, 64, batch_first=True)
        self.out = nn.Linear(64, 1)

    def forward(self, x):
        return self.out(self.rnn(self.encoder(self.embed(x)))[0][:, -1])


def test_torch_encoder_and_gru(compare, device) -> None:
    torch.manual_seed(0)
    theirs = Encoded().to(device)
    ours = copy.deepcopy(theirs)
    assert len(accelerate(ours).swapped) == 2
    x, y = torch.randn(256, 30, 6, device=device), torch.randn(256, device=device)
    row = "accelerate torch encoder + GRU B 256 T 30 training step"
    compare(row, stepper(ours, x, y), {"as it was": stepper(theirs, x, y)}, targets={"as it was": 1.5})


@pytest.mark.parametrize(("file", "name"), [("gats", "GATModel"), ("sfm", "SFM_Model"), ("alstm", "ALSTMModel")])
def test_qlibs_networks(compare, device, file, name) -> None:
    module = pytest.importorskip(f"qlib.contrib.model.pytorch_{file}", reason="make bench installs Qlib, the peer")
    torch.manual_seed(0)
    options = {"device": device} if file == "sfm" else {}
    theirs = getattr(module, name)(d_feat=6, hidden_size=64, **options).to(device)
    ours = copy.deepcopy(theirs)
    assert any(swap.name == "" for swap in accelerate(ours).swapped)
    x, y = torch.randn(300, 6 * 20, device=device), torch.randn(300, device=device)
    compare(f"accelerate Qlib's {name} N 300 T 20 training step", stepper(ours, x, y), {"as it was": stepper(theirs, x, y)})
