"""LocalFormer and Transformer: a training step and inference against Qlib's networks, eager and compiled; over T and over B."""

from __future__ import annotations

import copy

import pytest
import torch

from alphakernels import models

qlib = {
    "LocalFormer": pytest.importorskip("qlib.contrib.model.pytorch_localformer", reason="make bench installs Qlib, the peer"),
    "Transformer": pytest.importorskip("qlib.contrib.model.pytorch_transformer", reason="make bench installs Qlib, the peer"),
}
OURS = {"LocalFormer": models.LocalformerNet, "Transformer": models.TransformerNet}
FEATURES, WIDTH, HEADS, LAYERS, HIDDEN = 6, 64, 2, 2, 2048
TARGET = (1024, 60)  # B, T
SWEEP = [(1, 60), (128, 60), (512, 60), (1024, 20), (256, 120), (128, 240), (64, 480)]
WORK = {"LocalFormer": {"train": 2.0, "infer": 2.2}, "Transformer": {"train": 2.0, "infer": 2.0}}  # ratio to Qlib eager to reach


def flops(name: str, batch: int, steps: int, training: bool) -> float:
    """The layers' products, and LocalFormer's GRU; backward twice the forward."""
    local = name == "LocalFormer"
    per_token = LAYERS * (2 * WIDTH * (4 * WIDTH + 2 * HIDDEN + 3 * WIDTH * local) + 4 * steps * WIDTH)
    per_token += LAYERS * 12 * WIDTH * WIDTH * local
    return batch * steps * per_token * (3 if training else 1)


def worker(network, work: str, x, y):
    """A function that does the work once."""
    if work == "infer":
        network.eval()

        def infer():
            with torch.no_grad():
                return network(x)

        return infer
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)

    def train():
        optimizer.zero_grad(set_to_none=True)
        (network(x) - y).square().mean().backward()
        optimizer.step()

    return train


def measure(compare, device, name: str, work: str, sizes: tuple[int, int], compiled: bool = False) -> None:
    batch, steps = sizes
    torch.manual_seed(0)
    theirs = qlib[name].Transformer(FEATURES, WIDTH, HEADS, LAYERS, 0.0).to(device)
    ours = OURS[name](FEATURES, WIDTH, HEADS, LAYERS, 0.0).to(device)
    ours.load_state_dict(theirs.state_dict())
    x, y = torch.randn(batch, FEATURES * steps, device=device), torch.randn(batch, device=device)
    peers = {"Qlib eager": worker(theirs, work, x, y)}
    if compiled:
        peers["Qlib torch.compile"] = worker(torch.compile(copy.deepcopy(theirs), dynamic=False), work, x, y)
    compare(
        f"{name} B {batch}, T {steps} {work}",
        worker(ours, work, x, y),
        peers,
        flops=flops(name, batch, steps, work == "train"),
        targets={"Qlib eager": WORK[name][work]} if sizes == TARGET and device.type == "cpu" else {},
    )


@pytest.mark.parametrize("work", ["train", "infer"])
@pytest.mark.parametrize("name", OURS)
def test_target(compare, device, name, work) -> None:
    measure(compare, device, name, work, TARGET)


@pytest.mark.parametrize("work", ["train", "infer"])
@pytest.mark.parametrize("sizes", SWEEP, ids=str)
def test_sweep(compare, device, work, sizes) -> None:
    measure(compare, device, "LocalFormer", work, sizes)


@pytest.mark.parametrize("work", ["train", "infer"])
@pytest.mark.parametrize("name", OURS)
def test_against_torch_compile(compare, device, name, work) -> None:
    measure(compare, device, name, work, (512, 60), compiled=True)
