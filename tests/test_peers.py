"""The peers of the benchmarks compute what our networks compute: a faster peer must not be another model."""

from __future__ import annotations

import pytest
import torch

from alphakernels import models
from alphakernels.testing import Tolerance, assert_close
from alphakernels.testing.peers import TorchGRU, TorchLayer, TorchLSTM, peer_of, plain_pytorch

WIDTH = 6 * 10
NETWORKS = {
    "TabNet": (lambda: models.TabNet(WIDTH, 8, vbs=16), set()),
    "ALSTM": (models.ALSTMNet, {TorchGRU}),
    "LSTM": (models.LSTMNet, {TorchLSTM}),
    "LocalFormer": (lambda: models.LocalformerNet(6, 16, 2, 2, 0.0), {TorchLayer, TorchGRU}),
    "Transformer": (lambda: models.TransformerNet(6, 16, 2, 2, 0.0), {TorchLayer}),
    "SFM": (lambda: models.SFMNet(d_feat=6, hidden_size=16, freq_dim=5), set()),
    "GATs": (models.GATsNet, {TorchGRU}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_plain_pytorch_computes_the_same(name):
    torch.manual_seed(0)
    make, layers = NETWORKS[name]
    ours = make().double()
    peer = peer_of(ours, "no_such_file", "Model")
    assert peer.eager_name == "plain PyTorch eager"
    assert {type(m) for m in peer.network.modules() if type(m).__module__ == peer.__class__.__module__} == layers
    x = torch.randn(48, WIDTH, dtype=torch.float64)
    given = (x, torch.rand_like(x)) if name == "TabNet" else (x,)

    def step(network):
        out = network(*given)
        out = out[0] if isinstance(out, tuple) else out
        out.square().sum().backward()
        grads = {key: p.grad for key, p in network.named_parameters() if p.grad is not None}
        return {"out": out.detach(), **grads, **{key: b for key, b in network.named_buffers()}}

    (run,) = peer.eager(lambda network: lambda: step(network)).values()
    found, expected = run(), step(ours)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert_close(f"{name}: {key}", found[key], tensor, tolerance=Tolerance(1e-7, 1e-7, 1e-9))


def test_the_ops_are_put_back():
    from alphakernels.ops.sparsemax import reference

    before = reference.sparsemax
    with pytest.raises(KeyError), plain_pytorch():
        assert reference.sparsemax is not before
        raise KeyError
    assert reference.sparsemax is before
