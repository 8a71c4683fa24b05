"""Our GATs and HIST networks against Qlib's: initial weights, outputs, gradients. Qlib's HIST asks for the device of a GPU tensor; here
it is given the CPU."""

from __future__ import annotations

import pytest
import torch

from alphakernels import models
from alphakernels.testing import Tolerance, assert_close

gats = pytest.importorskip("qlib.contrib.model.pytorch_gats")
gats_ts = pytest.importorskip("qlib.contrib.model.pytorch_gats_ts")
hist = pytest.importorskip("qlib.contrib.model.pytorch_hist")

STOCKS = [2, 3, 20, 300]
F, T, K = 6, 5, 31
PAIRS = {"GATs": (gats.GATModel, models.GATsNet), "GATs windows": (gats_ts.GATModel, models.GATsNet), "HIST": (hist.HISTModel, models.HISTNet)}


@pytest.fixture(autouse=True)
def device_of_the_cpu(monkeypatch):
    monkeypatch.setattr(torch, "get_device", lambda x: "cpu")


def pair(name, base_model, seed=3, **more):
    networks = []
    for make in PAIRS[name]:
        torch.manual_seed(seed)
        networks.append(make(d_feat=F, hidden_size=16, num_layers=2, base_model=base_model, **more))
    return networks


def arguments(name, n, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, F * T, generator=generator, dtype=torch.float64).to(dtype)
    if name == "GATs windows":
        x = x.reshape(n, F, T).transpose(1, 2)
    if name != "HIST":
        return (x,)
    member = (torch.rand(n, K, generator=generator) < 0.1).to(dtype)
    member[0], member[:, 4] = 0, 0  # a stock without concept, a concept without stock
    return x, member


def run(network, given):
    out = network(*given).reshape(-1)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out.dtype)
    (out * weights).sum().backward()
    return {"out": out.detach()} | {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("base_model", ["GRU", "LSTM"])
@pytest.mark.parametrize("name", PAIRS)
def test_start_bitwise_equal(name, base_model):
    theirs, ours = pair(name, base_model)
    expected, got = theirs.state_dict(), ours.state_dict()
    assert list(got) == list(expected)
    assert all(torch.equal(got[key], expected[key]) for key in expected)


@pytest.mark.parametrize("n", STOCKS)
@pytest.mark.parametrize("base_model", ["GRU", "LSTM"])
@pytest.mark.parametrize("name", PAIRS)
def test_in_float64(name, base_model, n, in_float64):
    with in_float64():
        theirs, ours = pair(name, base_model)
        ours.load_state_dict(theirs.state_dict())
        given = arguments(name, n, torch.float64)
        expected, got = run(theirs, given), run(ours, given)
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert_close(key, got[key], value, tolerance=Tolerance(0, 1e-9, 1e-12))


@pytest.mark.parametrize("n", STOCKS)
@pytest.mark.parametrize("name", PAIRS)
def test_in_float32(name, n):
    theirs, ours = pair(name, "GRU")
    given = arguments(name, n, torch.float32)
    expected, got = run(theirs, given), run(ours, given)
    for key, value in expected.items():
        assert_close(key, got[key], value, tolerance=Tolerance(0, 1e-5, 1e-6))


@pytest.mark.parametrize("name", PAIRS)
def test_one_stock_keeps_its_axis_where_qlib_loses_it(name):
    theirs, ours = pair(name, "LSTM")
    given = arguments(name, 1, torch.float32)
    with torch.no_grad():
        assert theirs(*given).shape == () and ours(*given).shape == (1,)
        assert_close("score", ours(*given)[0], theirs(*given), tolerance=Tolerance(1e-5, 1e-5))


@pytest.mark.parametrize("name", ["GATs", "HIST"])
def test_state_dicts_go_both_ways(name):
    theirs, ours = pair(name, "GRU")
    _, other = pair(name, "GRU", seed=9)
    other.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(other.state_dict())
    given = arguments(name, 12, torch.float32)
    assert_close("scores", other(*given), theirs(*given), tolerance=Tolerance(1e-5, 1e-5))
