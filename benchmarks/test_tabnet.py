"""TabNet: a training step and inference against Qlib's network, eager and compiled; peak memory of a step."""

from __future__ import annotations

import copy

import pytest
import torch

from alphakernels.models import TabNet

FEATURES, OUT, VBS = 158, 64, 2048
qlib = pytest.importorskip("qlib.contrib.model.pytorch_tabnet", reason="make bench installs Qlib, the peer")


def flops(batch: int, training: bool) -> float:
    """Of the matrix products: 5 feature transformers of 4 linear layers, 4 attentive transformers."""
    forward = 2 * batch * (5 * (FEATURES * 256 + 3 * 128 * 256) + 4 * 64 * FEATURES + 64 * OUT)
    return forward * (3 if training else 1)


def networks(device) -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    ours = TabNet(inp_dim=FEATURES, out_dim=OUT, relax=1.3, vbs=VBS).to(device)
    theirs = qlib.TabNet(inp_dim=FEATURES, out_dim=OUT, relax=1.3, vbs=VBS).to(device)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def train_step(network, optimizer, x, priors, y):
    optimizer.zero_grad(set_to_none=True)
    loss = (network(x, priors)[0] - y).square().mean()
    loss.backward()
    torch.nn.utils.clip_grad_value_(network.parameters(), 3.0)
    optimizer.step()


@pytest.mark.parametrize("batch", [4096, 16384])
def test_train_step(compare, device, batch) -> None:
    ours, theirs = networks(device)
    compiled = torch.compile(copy.deepcopy(theirs), dynamic=False)
    x, y = torch.randn(batch, FEATURES, device=device), torch.randn(batch, OUT, device=device)
    priors = torch.ones_like(x)

    def stepper(network, **options):
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, **options)
        network.train()
        return lambda: train_step(network, optimizer, x, priors, y)

    peers = {"Qlib eager": stepper(theirs)}
    if batch == 4096:
        peers["Qlib torch.compile"] = stepper(compiled)
    compare(
        f"TabNet B {batch} training step",
        stepper(ours, fused=True),
        peers,
        flops=flops(batch, True),
        targets={"Qlib eager": 1.8 if device.type == "cpu" else 4.0},
    )


@pytest.mark.parametrize("batch", [4096, 1])
def test_inference(compare, device, batch) -> None:
    ours, theirs = networks(device)
    x = torch.randn(batch, FEATURES, device=device)
    priors = torch.ones_like(x)
    compiled = torch.compile(copy.deepcopy(theirs).eval(), dynamic=False)

    def infer(network):
        network.eval()

        def run():
            with torch.no_grad():
                return network(x, priors)

        return run

    compare(
        f"TabNet B {batch} inference",
        infer(ours),
        {"Qlib eager": infer(theirs), "Qlib torch.compile": infer(compiled)},
        flops=flops(batch, False),
        targets={"Qlib eager": 2.5} if batch > 1 and device.type == "cpu" else {},
    )
