"""GRUNet, LSTMNet and ALSTMNet: both styles of input, one row, attention weights, errors."""

from __future__ import annotations

import pytest
import torch

from alphakernels import models
from alphakernels.testing import assert_close

NETWORKS = {
    "GRU": models.GRUNet,
    "LSTM": models.LSTMNet,
    "ALSTM GRU": models.ALSTMNet,
    "ALSTM LSTM": lambda **sizes: models.ALSTMNet(rnn_type="lstm", **sizes),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_and_windows_are_two_layouts_of_one_thing(name):
    network = NETWORKS[name](d_feat=5, hidden_size=12)
    windows = torch.randn(7, 9, 5)
    rows = windows.transpose(1, 2).reshape(7, 45)
    out = network(windows)
    assert out.shape == (7,)
    assert_close("out", network(rows), out)
    assert network(windows[:1]).shape == network(rows[:1]).shape == (1,)
    assert network(windows[:0]).shape == (0,)
    assert_close("one row", network(windows[:1]), out[:1])


@pytest.mark.parametrize("name", NETWORKS)
def test_other_shapes_are_refused(name):
    network = NETWORKS[name](d_feat=4)
    for shape in ((3, 9), (3, 0), (3, 5, 3), (4,), (2, 3, 4, 4)):
        with pytest.raises(ValueError, match=r"x must be of shape \[N, 4 \* T\] \(rows\) or \[N, T, 4\] \(windows\), got"):
            network(torch.zeros(shape))


def test_unknown_rnn_type():
    with pytest.raises(ValueError, match="rnn_type must be GRU or LSTM, got 'RNN'"):
        models.ALSTMNet(rnn_type="RNN")


@pytest.mark.parametrize("rnn_type", ["GRU", "LSTM"])
def test_attention_weights(rnn_type):
    network = models.ALSTMNet(d_feat=3, hidden_size=10, rnn_type=rnn_type)
    x = torch.randn(8, 33)
    out, weights = network(x, return_weights=True)
    assert torch.equal(out, network(x)) and weights.shape == (8, 11)
    assert_close("sums", weights.sum(1), torch.ones(8))


@pytest.mark.parametrize("name", NETWORKS)
def test_export_and_compile(name):
    network = NETWORKS[name](d_feat=2, hidden_size=4).eval()
    x = torch.randn(5, 8)
    program = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=2)},))
    assert torch.equal(program.module()(x[:3]), network(x[:3]))
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), network(x))
