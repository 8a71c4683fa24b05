"""GRU, LSTM and ALSTM: training step and inference against Qlib's networks, eager and compiled; stacks of many sizes against torch.nn."""

from __future__ import annotations

import copy

import pytest
import torch

from alphakernels import nn
from alphakernels.models import ALSTMNet, GRUNet, LSTMNet

BATCH, STEPS, FEATURES, HIDDEN = 800, 60, 6, 64
GATES = {"GRU": 3, "LSTM": 4}
qlib = {
    name: pytest.importorskip(f"qlib.contrib.model.pytorch_{name.lower()}", reason="make bench installs Qlib, the peer")
    for name in ("ALSTM", "GRU", "LSTM")
}
# name: ours, Qlib's, constructor arguments, cell, ratios to reach in training and inference
ROWS = {
    "ALSTM (GRU)": (ALSTMNet, qlib["ALSTM"].ALSTMModel, {}, "GRU", 1.7, 1.7),
    "ALSTM (LSTM)": (ALSTMNet, qlib["ALSTM"].ALSTMModel, {"rnn_type": "LSTM"}, "LSTM", 1.7, 1.7),
    "LSTM": (LSTMNet, qlib["LSTM"].LSTMModel, {}, "LSTM", 1.5, 1.5),
    "GRU": (GRUNet, qlib["GRU"].GRUModel, {}, "GRU", 1.6, 1.7),
}


def flops(name: str, cell: str, training: bool) -> float:
    """Of the matrix products."""
    rows = GATES[cell] * HIDDEN
    attention = name.startswith("ALSTM")
    first = HIDDEN if attention else FEATURES
    one = rows * (first + 3 * HIDDEN) + (HIDDEN * FEATURES + HIDDEN * HIDDEN // 2 if attention else 0)
    return 2 * BATCH * STEPS * one * (3 if training else 1)


def networks(name: str, device) -> tuple[torch.nn.Module, torch.nn.Module]:
    ours, theirs, options, *_ = ROWS[name]
    torch.manual_seed(0)
    mine, qlibs = ours(**options).to(device), theirs(**options).to(device)
    qlibs.load_state_dict(mine.state_dict())
    return mine, qlibs


@pytest.mark.parametrize("name", ROWS)
def test_train_step(compare, device, name) -> None:
    ours, theirs = networks(name, device)
    x, y = torch.randn(BATCH, FEATURES * STEPS, device=device), torch.randn(BATCH, device=device)

    def stepper(network, **options):
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, **options)

        def step():
            optimizer.zero_grad(set_to_none=True)
            (network(x) - y).square().mean().backward()
            torch.nn.utils.clip_grad_value_(network.parameters(), 3.0)
            optimizer.step()

        return step

    peers = {"Qlib eager": stepper(theirs)}
    if name == "ALSTM (GRU)":
        peers["Qlib torch.compile"] = stepper(torch.compile(copy.deepcopy(theirs), dynamic=False))
    targets = {"Qlib eager": ROWS[name][4] if device.type == "cpu" else 3.0}
    compare(f"{name} B {BATCH} training step", stepper(ours, fused=True), peers, flops=flops(name, ROWS[name][3], True), targets=targets)


@pytest.mark.parametrize("batch", [BATCH, 1])
@pytest.mark.parametrize("name", ROWS)
def test_inference(compare, device, name, batch) -> None:
    ours, theirs = networks(name, device)
    x = torch.randn(batch, FEATURES * STEPS, device=device)

    def infer(network):
        network.eval()

        def run():
            with torch.no_grad():
                return network(x)

        return run

    peers = {"Qlib eager": infer(theirs)}
    if name == "ALSTM (GRU)" and batch == BATCH:
        peers["Qlib torch.compile"] = infer(torch.compile(copy.deepcopy(theirs), dynamic=False))
    targets = {"Qlib eager": ROWS[name][5]} if batch == BATCH and device.type == "cpu" else {}
    floor = flops(name, ROWS[name][3], False) * batch / BATCH
    compare(f"{name} B {batch} inference", infer(ours), peers, flops=floor, targets=targets)


SWEEP = [(h, b, t) for h in (16, 20, 64, 128, 300, 512) for b in (1, 7, 64, 800) for t in (20, 60) if h * b * t <= 128 * 800 * 60]
SWEEP += [(64, 8192, 20), (64, 8192, 60), (16, 8192, 240), (64, 800, 240), (20, 7, 240), (300, 1, 240), (512, 800, 20)]


@pytest.mark.parametrize("hidden, batch, steps", SWEEP)
@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_against_torch(compare, device, training, cell, hidden, batch, steps) -> None:
    """The sweep: nowhere more than 5% behind torch.nn's own."""
    ours = getattr(nn, cell)(FEATURES, hidden, 2, batch_first=True).to(device)
    theirs = getattr(torch.nn, cell)(FEATURES, hidden, 2, batch_first=True).to(device)
    x = torch.randn(batch, steps, FEATURES, device=device)

    def infer(network):
        def run():
            with torch.no_grad():
                return network(x)

        return run

    def train(network):
        def run():
            network.zero_grad(set_to_none=True)
            network(x)[0].sum().backward()

        return run

    make = train if training else infer
    compare(
        f"{cell} H {hidden} B {batch} T {steps} {'forward + backward' if training else 'inference'}",
        make(ours),
        {"torch.nn": make(theirs)},
        flops=2 * batch * steps * GATES[cell] * hidden * (FEATURES + 3 * hidden) * (3 if training else 1),
        targets={"torch.nn": 0.95},
    )
