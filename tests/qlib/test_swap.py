"""accelerate on Qlib's networks: outputs and gradients as before, hooks, one row, restore."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from torch import nn

from alphakernels import accelerate, restore
from alphakernels.swap._swapped import Swapped

pytest.importorskip("qlib.contrib.model.pytorch_gru")
PYTORCH = "qlib.contrib.model.pytorch_"
ENCODER = {"d_feat": 3, "d_model": 8, "nhead": 2, "num_layers": 2, "dropout": 0.0}
RECURRENT = {"d_feat": 3, "hidden_size": 8, "num_layers": 2}
# File, class, arguments, whether it takes windows; the classes swapped in it.
NETWORKS = [
    ("gru", "GRUModel", RECURRENT, False, {"GRU", "GRUModel"}),
    ("gru_ts", "GRUModel", RECURRENT, True, {"GRU", "GRUModel"}),
    ("lstm", "LSTMModel", RECURRENT, False, {"LSTM", "LSTMModel"}),
    ("lstm_ts", "LSTMModel", RECURRENT, True, {"LSTM", "LSTMModel"}),
    ("alstm", "ALSTMModel", RECURRENT, False, {"GRU", "ALSTMModel"}),
    ("alstm_ts", "ALSTMModel", RECURRENT | {"rnn_type": "LSTM"}, True, {"LSTM", "ALSTMModel"}),
    ("gats", "GATModel", RECURRENT, False, {"GRU", "GATModel"}),
    ("gats_ts", "GATModel", RECURRENT | {"base_model": "LSTM"}, True, {"LSTM", "GATModel"}),
    ("sfm", "SFM_Model", {"d_feat": 3, "hidden_size": 8, "freq_dim": 4, "output_dim": 3}, False, {"SFM_Model"}),
    ("localformer", "Transformer", ENCODER, False, {"TransformerEncoderLayer", "LocalformerEncoder", "GRU"}),
    ("localformer_ts", "Transformer", ENCODER, True, {"TransformerEncoderLayer", "LocalformerEncoder", "GRU"}),
    ("transformer", "Transformer", ENCODER, False, {"TransformerEncoderLayer"}),
    ("transformer_ts", "Transformer", ENCODER, True, {"TransformerEncoderLayer"}),
    ("tabnet", "TabNet", {"inp_dim": 12, "out_dim": 4, "n_d": 5, "n_a": 5, "vbs": 8}, None,
     {"GBN", "GLU", "FeatureTransformer", "AttentionTransformer", "DecisionStep", "TabNet"}),
]  # fmt: skip
every = pytest.mark.parametrize("file, name, options, windows, expected", NETWORKS, ids=[n[0] for n in NETWORKS])


def make(file, name, options, dtype=torch.float64):
    torch.manual_seed(3)
    if file == "sfm":
        dtype = torch.float32  # it mixes dtypes up
    return getattr(importlib.import_module(PYTORCH + file), name)(**options).to(dtype)


def inputs(network, windows, rows=11):
    dtype = next(network.parameters()).dtype
    generator = torch.Generator().manual_seed(1)
    if windows is None:
        return torch.randn(rows, 12, generator=generator).to(dtype), torch.ones(rows, 12, dtype=dtype)
    return (torch.randn(*((rows, 7, 3) if windows else (rows, 21)), generator=generator).to(dtype),)


def step(network, x):
    network.zero_grad()
    torch.set_default_dtype(x[0].dtype)  # of what Qlib's TabNet makes for itself
    try:
        out = network(*x)
    finally:
        torch.set_default_dtype(torch.float32)
    loss = out[0].square().mean() + out[1].sum() if isinstance(out, tuple) else (out - torch.linspace(-1, 1, len(out))).square().mean()
    loss.backward()
    out = out[0] if isinstance(out, tuple) else out
    return out.detach(), {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


@every
def test_the_same_numbers(file, name, options, windows, expected):
    theirs = make(file, name, options)
    ours, x = copy.deepcopy(theirs), inputs(theirs, windows)
    report = accelerate(ours)
    assert not report.kept, report
    assert {swap.original.rpartition(".")[2] for swap in report.swapped} == expected
    assert all(swap.error is not None for swap in report.swapped)
    tolerance = 1e-9 if x[0].dtype == torch.float64 else 1e-5
    for training in (True, False):
        (out, gradients), (right, wanted) = (step(network.train(training), x) for network in (ours, theirs))
        assert out.shape == right.shape and out.dtype == right.dtype
        assert (out - right).abs().max() <= tolerance * right.abs().max()
        assert gradients.keys() == wanted.keys()
        largest = max(g.abs().max() for g in wanted.values())
        for parameter, gradient in wanted.items():
            assert (gradients[parameter] - gradient).abs().max() <= tolerance * max(gradient.abs().max(), 0.05 * largest), parameter
    if windows is not None:
        one = tuple(t[:1] for t in x)
        assert ours(*one).shape == theirs(*one).shape
    assert list(ours.state_dict()) == list(theirs.state_dict())


@every
def test_restored_bitwise(file, name, options, windows, expected):
    network = make(file, name, options)
    before, x = copy.deepcopy(network), inputs(network, windows)
    classes = {module: type(module) for module in network.modules()}
    accelerate(network, verify=False)
    assert restore(network)
    assert {module: type(module) for module in network.modules()} == classes
    (out, gradients), (right, wanted) = step(network, x), step(before, x)
    assert torch.equal(out, right) and all(torch.equal(gradients[n], g) for n, g in wanted.items())


@pytest.mark.parametrize(
    "file, name, where",
    [("gru", "GRUModel", "rnn"), ("alstm", "ALSTMModel", "att_net.att_act"), ("gats", "GATModel", "transformation"),
     ("sfm", "SFM_Model", "activation"), ("localformer", "Transformer", "transformer_encoder.conv.1")],
)  # fmt: skip
def test_a_hook_inside_is_called(file, name, where):
    """On a module that the fused forward passes over, set later."""
    options = next(n[2] for n in NETWORKS if n[:2] == (file, name))
    network = make(file, name, options).eval()
    x = inputs(network, windows=False)
    right = network(*x)
    accelerate(network)
    seen = []
    network.get_submodule(where).register_forward_hook(lambda *args: seen.append(1))
    out = network(*x)
    assert seen
    torch.testing.assert_close(out, right, rtol=1e-4, atol=1e-5)


def test_hist_asks_for_a_gpu(monkeypatch):
    theirs = make("hist", "HISTModel", RECURRENT)
    ours = copy.deepcopy(theirs)
    report = accelerate(ours)
    if not torch.cuda.is_available():
        (kept,) = report.kept
        assert kept.original.endswith("HISTModel") and "the original cannot run on the inputs it would be verified with" in kept.reason
    # On a machine without one it runs, once swapped unverified; the original where it is told of none.
    assert accelerate(ours, verify=False)
    monkeypatch.setattr(torch, "get_device", lambda x: "cpu", raising=False)
    concepts = (torch.rand(11, 4, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    x = (*inputs(ours, windows=False), concepts)
    with torch.no_grad():
        # Within what its float32 ones for the sizes of concepts allow.
        torch.testing.assert_close(ours(*x), theirs(*x), rtol=1e-6, atol=1e-7)
    gradients, wanted = step(ours, x)[1], step(theirs, x)[1]
    torch.testing.assert_close(gradients, wanted, rtol=1e-5, atol=1e-7)


def test_what_an_estimator_of_qlib_holds():
    """A swap within Qlib's own class: its network trains and predicts as before."""
    module = importlib.import_module(f"{PYTORCH}gru")
    model = module.GRU(d_feat=3, hidden_size=8, GPU=-1, seed=0)
    x = torch.randn(9, 21, generator=torch.Generator().manual_seed(0))
    right = model.gru_model(x)
    assert accelerate(model.gru_model)
    assert isinstance(model.gru_model, Swapped) and isinstance(model.gru_model, module.GRUModel)
    torch.testing.assert_close(model.gru_model(x), right)
    assert isinstance(model.gru_model.rnn, nn.GRU)
