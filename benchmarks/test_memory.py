"""Peak memory of a training step against Qlib's network: what is alive above the parameters, by the allocator's own record."""

from __future__ import annotations

import pytest
import torch

from alphakernels import ops
from alphakernels.models import ALSTMNet, GRUNet, LocalformerNet, LSTMNet, SFMNet, TabNet, TransformerNet

qlib = pytest.importorskip("qlib.contrib.model.pytorch_tabnet", reason="make bench installs Qlib, the peer")


def test_tabnet_peak(record_peak, peak_bytes, device) -> None:
    batch, features = 4096, 158
    x, priors, y = torch.randn(batch, features, device=device), torch.ones(batch, features, device=device), 0.0
    peaks = {}
    for name, cls in (("alphakernels", TabNet), ("Qlib eager", qlib.TabNet)):
        torch.manual_seed(0)
        network = cls(inp_dim=features, out_dim=64, relax=1.3, vbs=2048).to(device)

        def step(network=network):
            network.zero_grad(set_to_none=True)
            (network(x, priors)[0] - y).square().mean().backward()

        peaks[name] = peak_bytes(step, device)
    record_peak("TabNet B 4096 training step, peak", peaks["alphakernels"], "Qlib eager", peaks["Qlib eager"], 2.0)
    assert peaks["alphakernels"] < peaks["Qlib eager"]


def test_sfm_peak(record_peak, peak_bytes, device) -> None:
    """On the CPU without the kernel's scratch, which the record does not see: 4 MB a thread and 3 MB for the sums."""
    module = pytest.importorskip("qlib.contrib.model.pytorch_sfm")
    x, y = torch.randn(1000, 360, device=device), torch.randn(1000, device=device)
    peaks = {}
    for name, cls in (("alphakernels", SFMNet), ("Qlib eager", module.SFM_Model)):
        torch.manual_seed(0)
        network = cls(d_feat=6, hidden_size=64, freq_dim=25, device=device).to(device)

        def step(network=network):
            network.zero_grad(set_to_none=True)
            (network(x) - y).square().mean().backward()

        peaks[name] = peak_bytes(step, device)
    record_peak("SFM B 1000, T 60 training step, peak", peaks["alphakernels"], "Qlib eager", peaks["Qlib eager"], 10.0)
    assert peaks["alphakernels"] < peaks["Qlib eager"] / 10


@pytest.mark.parametrize("name, ours", [("ALSTM", ALSTMNet), ("GRU", GRUNet), ("LSTM", LSTMNet)])
def test_recurrent_peak(record_peak, peak_bytes, device, name, ours) -> None:
    """On the CPU without the kernel's scratch, which the record does not see: the sums of up to 16 groups, 5 MB."""
    module = pytest.importorskip(f"qlib.contrib.model.pytorch_{name.lower()}")
    x, y = torch.randn(800, 360, device=device), torch.randn(800, device=device)
    peaks = {}
    for peer, network in (("alphakernels", ours()), ("Qlib eager", getattr(module, f"{name}Model")())):
        network.to(device)

        def step(network=network):
            network.zero_grad(set_to_none=True)
            (network(x) - y).square().mean().backward()

        peaks[peer] = peak_bytes(step, device)
    record_peak(f"{name} B 800, T 60 training step, peak", peaks["alphakernels"], "Qlib eager", peaks["Qlib eager"], 1.0)
    assert peaks["alphakernels"] < peaks["Qlib eager"]


@pytest.mark.parametrize("stocks", [300, 1000, 4000, 20000])
def test_gats_attention_peak(record_peak, peak_bytes, device, stocks) -> None:
    """Forward and backward. Qlib's is measured up to 1,000 stocks; beyond, the peer is the direct softmax, which holds [N, N] and not Qlib's
    [N, N, 2H], and beyond 4,000 only ours is measured."""
    gats = pytest.importorskip("qlib.contrib.model.pytorch_gats")
    s, t, h = (torch.randn(shape, device=device, requires_grad=True) for shape in ((stocks,), (stocks,), (stocks, 64)))
    network = gats.GATModel(6, 64).to(device)

    def theirs() -> None:
        if stocks <= 1000:
            (network.cal_attention(h, h) @ h).sum().backward()
        else:
            (torch.softmax(torch.nn.functional.leaky_relu(s[:, None] + t), 1) @ h).sum().backward()

    ours = peak_bytes(lambda: ops.complete_graph_attention(s, t, h).sum().backward(), device)
    if stocks <= 4000:
        peer = "Qlib eager" if stocks <= 1000 else "torch, all pairs"
        record_peak(f"GATs attention N {stocks} forward + backward, peak", ours, peer, peak_bytes(theirs, device), 10.0)
    assert ours < 25_000 * stocks  # linear: 100 MB at 4,000 stocks


@pytest.mark.parametrize("name, ours", [("LocalFormer", LocalformerNet), ("Transformer", TransformerNet)])
@pytest.mark.parametrize("memory, target", [("auto", 2.0), ("low", 5.0)])
def test_encoder_peak(record_peak, peak_bytes, device, name, ours, memory, target) -> None:
    """On the CPU without the kernel's scratch, which the record does not see: the sums of up to 16 parts, 20 MB."""
    module = pytest.importorskip(f"qlib.contrib.model.pytorch_{name.lower()}")
    x, y = torch.randn(1024, 360, device=device), torch.randn(1024, device=device)
    peaks = {}
    for peer, network in (("alphakernels", ours(6, 64, 2, 2, 0.0, memory=memory)), ("Qlib eager", module.Transformer(6, 64, 2, 2, 0.0))):
        network.to(device)

        def step(network=network):
            network.zero_grad(set_to_none=True)
            (network(x) - y).square().mean().backward()

        peaks[peer] = peak_bytes(step, device)
    title = f"{name} B 1024, T 60 training step, memory={memory!r}, peak"
    record_peak(title, peaks["alphakernels"], "Qlib eager", peaks["Qlib eager"], target)
    assert peaks["alphakernels"] < peaks["Qlib eager"] / target
