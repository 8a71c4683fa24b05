"""Our GRU, LSTM and ALSTM networks against Qlib's: initial weights, outputs, gradients, state dicts both ways."""

from __future__ import annotations

import pytest
import torch

from alphakernels import models
from alphakernels.testing import Tolerance, assert_close

gru, gru_ts = (pytest.importorskip(f"qlib.contrib.model.pytorch_gru{ts}").GRUModel for ts in ("", "_ts"))
lstm, lstm_ts = (pytest.importorskip(f"qlib.contrib.model.pytorch_lstm{ts}").LSTMModel for ts in ("", "_ts"))
alstm, alstm_ts = (pytest.importorskip(f"qlib.contrib.model.pytorch_alstm{ts}").ALSTMModel for ts in ("", "_ts"))

# name: ours, Qlib's for rows, Qlib's for windows, constructor arguments
NETWORKS = {
    "gru": (models.GRUNet, gru, gru_ts, {}),
    "gru, other sizes": (models.GRUNet, gru, gru_ts, dict(d_feat=20, hidden_size=33, num_layers=3, dropout=0.2)),
    "lstm": (models.LSTMNet, lstm, lstm_ts, {}),
    "lstm, one layer": (models.LSTMNet, lstm, lstm_ts, dict(d_feat=3, hidden_size=17, num_layers=1)),
    "alstm": (models.ALSTMNet, alstm, alstm_ts, {}),
    "alstm of an lstm": (models.ALSTMNet, alstm, alstm_ts, dict(hidden_size=21, rnn_type="LSTM", dropout=0.3)),
}


def pair(name, windows, seed=11):
    ours, *qlibs, sizes = NETWORKS[name]
    networks = []
    for make in (qlibs[windows], ours):
        torch.manual_seed(seed)
        networks.append(make(**sizes))
    return *networks, sizes.get("d_feat", 6)


@pytest.mark.parametrize("windows", [False, True], ids=["rows", "windows"])
@pytest.mark.parametrize("name", NETWORKS)
def test_start_bitwise_equal_and_exchange_states(name, windows):
    theirs, ours, _ = pair(name, windows)
    expected, got = theirs.state_dict(), ours.state_dict()
    assert list(got) == list(expected)
    assert all(torch.equal(got[k], expected[k]) for k in expected)
    another, _, _ = pair(name, windows, seed=12)
    ours.load_state_dict(another.state_dict())
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("windows", [False, True], ids=["rows", "windows"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_outputs_and_gradients(name, windows, dtype):
    theirs, ours, features = pair(name, windows)
    theirs, ours = theirs.to(dtype).eval(), ours.to(dtype).eval()
    steps, rows = 23, 37
    x = torch.randn((rows, steps, features) if windows else (rows, features * steps), dtype=dtype)
    given = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [network(i) for network, i in zip((theirs, ours), given, strict=True)]
    upstream = torch.randn(rows, dtype=dtype)
    gradients = [
        torch.autograd.grad(out, [i, *network.parameters()], upstream) for out, i, network in zip(outputs, given, (theirs, ours), strict=True)
    ]
    tolerance = Tolerance(1e-9, 1e-12) if dtype == torch.float64 else Tolerance(1e-5, 1e-5)
    assert_close("output", outputs[1], outputs[0], tolerance=tolerance)
    names = ["x", *(parameter for parameter, _ in ours.named_parameters())]
    expected = dict(zip(names, gradients[0], strict=True))
    for parameter, a in zip(names, gradients[1], strict=True):
        allowed = tolerance
        if parameter == "att_net.att_fc_in.bias":
            # The scores' gradients sum to zero over time, so this is a small difference of terms as large as the weight's gradient, and
            # Qlib's own is as far from the float64 one as ours: up to 2e-4 of the weight's, by the draw.
            exact = theirs.double()
            (gradient,) = torch.autograd.grad(exact(x.double()), exact.get_parameter(parameter), upstream.double())
            own = (expected[parameter].double() - gradient).abs().max().item()
            weight = expected["att_net.att_fc_in.weight"].abs().max().item()
            allowed = tolerance._replace(absolute=max(tolerance.of_largest * weight, 4 * own))
        assert_close(f"gradient of {parameter}", a, expected[parameter], tolerance=allowed)


@pytest.mark.parametrize("name", ["gru", "lstm", "alstm"])
def test_one_row_stays_a_row(name):
    theirs, ours, features = pair(name, False)
    x = torch.randn(1, features * 4)
    assert ours(x).shape == (1,)
    assert_close("output", ours(x), theirs(x).reshape(1))


@pytest.mark.parametrize("name", ["gru", "lstm", "alstm"])
def test_training_goes_the_same_way(name):
    theirs, ours, features = pair(name, False)
    torch.manual_seed(0)
    x, y = torch.randn(64, features * 7), torch.randn(64)
    losses = []
    for network in (theirs, ours):
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        for _ in range(10):
            optimizer.zero_grad()
            loss = (network(x) - y).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.detach())
    assert_close("loss after ten steps", losses[1], losses[0])
