"""SFM: a training step and inference against Qlib's network, eager and compiled; other batches, windows and sizes."""

from __future__ import annotations

import copy

import pytest
import torch

from alphakernels.models import SFMNet

qlib = pytest.importorskip("qlib.contrib.model.pytorch_sfm", reason="make bench installs Qlib, the peer")

FEATURES = 6
# B, T, H, F: the row of the targets, then each size varied.
TARGET = (1000, 60, 64, 25)
SWEEP = [
    (1, 60, 64, 25),
    (100, 60, 64, 25),
    (4000, 60, 64, 25),
    (1000, 20, 64, 25),
    (1000, 60, 32, 25),
    (1000, 60, 128, 25),
    (1000, 60, 64, 10),
]
WORK = {"train": 12.0, "infer": 12.0}  # ratio to Qlib eager to reach at TARGET


def flops(batch: int, steps: int, hidden: int, frequencies: int, training: bool) -> float:
    """The matrix products, and a multiply-add wherever one is needed per element of S: 7 forward, 15 backward."""
    products = 2 * (FEATURES + hidden) * (4 * hidden + frequencies)
    memory = 2 * hidden * frequencies
    return batch * steps * (products * (3 if training else 1) + memory * (22 if training else 7))


def networks(device, hidden: int, frequencies: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    sizes = dict(d_feat=FEATURES, hidden_size=hidden, freq_dim=frequencies, device=device)
    ours, theirs = SFMNet(**sizes).to(device), qlib.SFM_Model(**sizes).to(device)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def worker(network, work: str, x, y, **options):
    """A function that does the work once."""
    if work == "infer":
        network.eval()

        def infer():
            with torch.no_grad():
                return network(x)

        return infer
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, **options)

    def train():
        optimizer.zero_grad(set_to_none=True)
        (network(x) - y).square().mean().backward()
        torch.nn.utils.clip_grad_value_(network.parameters(), 3.0)
        optimizer.step()

    return train


def measure(compare, device, work: str, sizes: tuple[int, int, int, int], compiled: bool = False) -> None:
    batch, steps, hidden, frequencies = sizes
    ours, theirs = networks(device, hidden, frequencies)
    x, y = torch.randn(batch, FEATURES * steps, device=device), torch.randn(batch, device=device)
    peers = {"Qlib eager": worker(theirs, work, x, y)}
    if compiled:
        peers["Qlib torch.compile"] = worker(torch.compile(copy.deepcopy(theirs), dynamic=False), work, x, y)
    compare(
        f"SFM B {batch}, T {steps}, H {hidden}, F {frequencies} {work}",
        worker(ours, work, x, y, **({"fused": True} if work == "train" else {})),
        peers,
        flops=flops(*sizes, work == "train"),
        targets={"Qlib eager": (WORK[work] if device.type == "cpu" else 30.0)} if sizes == TARGET else {},
    )


@pytest.mark.parametrize("work", WORK)
def test_target(compare, device, work) -> None:
    measure(compare, device, work, TARGET)


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("sizes", SWEEP, ids=str)
def test_sweep(compare, device, work, sizes) -> None:
    measure(compare, device, work, sizes)


def test_against_torch_compile(compare, device) -> None:
    """Over few steps: it unrolls them, and has not finished compiling those of the target after eight minutes."""
    measure(compare, device, "infer", (1000, 4, 64, 25), compiled=True)
