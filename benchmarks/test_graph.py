"""GATs and HIST: training steps and inference against Qlib's networks; the attention alone from 300 to 20,000 stocks, time and memory."""

from __future__ import annotations

import copy

import pytest
import torch

from alphakernels import ops, use_backend
from alphakernels.models import GATsNet, HISTNet

gats = pytest.importorskip("qlib.contrib.model.pytorch_gats", reason="make bench installs Qlib, the peer")
hist = pytest.importorskip("qlib.contrib.model.pytorch_hist", reason="make bench installs Qlib, the peer")

FEATURES, STEPS, HIDDEN, CONCEPTS = 6, 60, 64, 733


@pytest.fixture
def cpu_has_a_device(monkeypatch, device):
    """Qlib's HIST asks for the device in a way that fails on the CPU."""
    if device.type == "cpu":
        monkeypatch.setattr(torch, "get_device", lambda x: "cpu")


def flops(stocks: int, gates: int, training: bool) -> float:
    """Of the two recurrent layers, which are nearly all of them."""
    forward = 2 * stocks * STEPS * gates * HIDDEN * (FEATURES + 3 * HIDDEN)
    return forward * (3 if training else 1)


def pair(theirs, ours, base_model, device):
    torch.manual_seed(0)
    first = ours(d_feat=FEATURES, hidden_size=HIDDEN, base_model=base_model).to(device)
    second = theirs(d_feat=FEATURES, hidden_size=HIDDEN, base_model=base_model).to(device)
    second.load_state_dict(first.state_dict())
    return first, second


def stepper(network, given, y, **options):
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, **options)

    def step():
        optimizer.zero_grad(set_to_none=True)
        (network(*given) - y).square().mean().backward()
        torch.nn.utils.clip_grad_value_(network.parameters(), 3.0)
        optimizer.step()

    return step


def inference(network, given):
    network = copy.deepcopy(network).eval()

    def run():
        with torch.no_grad():
            return network(*given)

    return run


CASES = [
    ("GATs", 300, "GRU", "training step", 2.2),
    ("GATs", 300, "GRU", "inference", 2.0),
    ("HIST", 300, "LSTM", "training step", 1.8),
    ("HIST", 300, "LSTM", "inference", 1.8),
    ("HIST", 4000, "LSTM", "training step", 2.0),
    ("HIST", 4000, "LSTM", "inference", None),
]


@pytest.mark.parametrize("name, stocks, base_model, what, target", CASES)
def test_network(compare, device, cpu_has_a_device, name, stocks, base_model, what, target) -> None:
    classes = (gats.GATModel, GATsNet) if name == "GATs" else (hist.HISTModel, HISTNet)
    ours, theirs = pair(*classes, base_model, device)
    x, y = torch.randn(stocks, FEATURES * STEPS, device=device), torch.randn(stocks, device=device)
    given = (x,) if name == "GATs" else (x, (torch.rand(stocks, CONCEPTS, device=device) < 0.005).float())
    training = what == "training step"
    if training:
        run, peer = stepper(ours, given, y, fused=True), stepper(theirs, given, y)
    else:
        run, peer = inference(ours, given), inference(theirs, given)
    compare(
        f"{name} N {stocks} T {STEPS} ({base_model}) {what}",
        run,
        {"Qlib eager": peer},
        flops=flops(stocks, 3 if base_model == "GRU" else 4, training),
        targets={"Qlib eager": target} if target and device.type == "cpu" else {},
    )


def scores_and_states(n, device):
    return [torch.randn(shape, device=device, requires_grad=True) for shape in ((n,), (n,), (n, HIDDEN))]


@pytest.mark.parametrize("stocks", [300, 1000, 4000, 5000, 20000])
def test_attention_alone(compare, device, stocks) -> None:
    """Forward and backward. The direct softmax over all pairs is a fairer peer than Qlib's, whose [N, N, 2H] tensor takes 16 GB at 4,000
    stocks: Qlib's is measured up to 1,000."""
    s, t, h = scores_and_states(stocks, device)
    grad = torch.randn(stocks, HIDDEN, device=device)
    peers = {}
    if stocks <= 5000:
        peers["torch, all pairs"] = lambda: torch.autograd.grad(
            torch.softmax(torch.nn.functional.leaky_relu(s[:, None] + t), 1) @ h, (s, t, h), grad
        )
    if stocks <= 1000:
        network = gats.GATModel(FEATURES, HIDDEN).to(device)
        peers["Qlib eager"] = lambda: torch.autograd.grad(network.cal_attention(h, h) @ h, h, grad)
    row = compare(
        f"GATs attention, {stocks} stocks, forward + backward, scale",
        lambda: torch.autograd.grad(ops.complete_graph_attention(s, t, h), (s, t, h), grad),
        peers,
        moved=4 * stocks * (6 * HIDDEN + 6),
        size=stocks,
    )
    row.note = f"{row.ours_ms / stocks * 1e6:.0f} ns a stock"


@pytest.mark.parametrize("stocks", [300, 4000])
def test_hidden_concepts(compare, device, stocks) -> None:
    """Choice of the neighbours and attention to them, forward and backward, against the lines of the original without its copies."""
    x = torch.randn(stocks, HIDDEN, device=device, requires_grad=True)
    grad = torch.randn(stocks, HIDDEN, device=device)

    chosen = int(ops.hidden_concepts(x).any(1).sum())

    def ours():
        return torch.autograd.grad(ops.concept_attention(x, ops.hidden_concepts(x)), x, grad)

    def theirs():
        with use_backend("reference"):
            return ours()

    compare(
        f"hidden concepts N {stocks} forward + backward",
        ours,
        {"torch, all pairs": theirs},
        flops=2 * stocks * HIDDEN * (stocks + 7 * chosen),
    )
