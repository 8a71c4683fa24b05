"""accelerate on torch's own layers: GRU, LSTM, TransformerEncoderLayer, and a hand-made model of them."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import alphakernels.nn
from alphakernels import accelerate, restore
from alphakernels.swap._swapped import Swapped


class Market(nn.Module):
    """Windows of two kinds of features, one recurrence shared by both."""

    def __init__(self, batch_first=True, dropout=0.0):
        super().__init__()
        self.embed = nn.Linear(5, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 37, dropout, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.rnn = nn.GRU(16, 8, 2, batch_first=batch_first, dropout=dropout)
        self.memory = nn.LSTM(16, 8, batch_first=batch_first)
        self.again = self.rnn
        self.out = nn.Linear(24, 1)
        self.time = 1 if batch_first else 0

    def forward(self, x, mask=None):
        h = self.encoder(self.embed(x), mask)
        return self.out(torch.cat([m(h)[0].select(self.time, -1) for m in (self.rnn, self.memory, self.again)], dim=1)).squeeze(1)


def market(dtype=torch.float64, **options):
    torch.manual_seed(1)
    return Market(**options).to(dtype)


def windows(dtype=torch.float64, batch_first=True, seed=0):
    x = torch.randn(7, 9, 5, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x if batch_first else x.transpose(0, 1).contiguous()


def step(net, x, *more):
    net.zero_grad()
    out = net(x, *more)
    out.square().sum().backward()
    return {"out": out.detach()} | {name: p.grad.clone() for name, p in net.named_parameters()}


def same(ours, theirs, tolerance):
    """Of the largest gradient: those of the keys' biases are zero but for rounding."""
    assert ours.keys() == theirs.keys()
    largest = max(t.abs().max() for t in theirs.values())
    for name, tensor in theirs.items():
        assert (ours[name] - tensor).abs().max() <= tolerance * max(tensor.abs().max(), 0.01 * largest), name


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 5e-5)])
def test_the_same_numbers(batch_first, dtype, tolerance):
    theirs = market(dtype, batch_first=batch_first)
    ours, x = copy.deepcopy(theirs), windows(dtype, batch_first)
    report = accelerate(ours)
    assert not report.kept, report
    assert sorted(s.name for s in report.swapped) == ["encoder.layers.0", "encoder.layers.1", "memory", "rnn"]
    assert report.others == {"torch.nn.modules.linear.Linear": 2}
    mask = nn.Transformer.generate_square_subsequent_mask(9, dtype=dtype)
    for training in (True, False):
        for more in ((), (mask,), (mask < 0,)):
            same(step(ours.train(training), x, *more), step(theirs.train(training), x, *more), tolerance)


def test_it_runs_on_the_kernels(monkeypatch):
    net, x = market().eval(), windows()
    accelerate(net)

    def refuse(*args, **kwargs):
        raise AssertionError("torch's own ran")

    for cls in (nn.GRU, nn.LSTM, nn.TransformerEncoderLayer):
        monkeypatch.setattr(cls, "forward", refuse)
    for name in ("linear1", "self_attn"):
        monkeypatch.setattr(net.encoder.layers[0].get_submodule(name), "_forward_hooks", {}, raising=False)
    assert net(x).shape == (7,)
    monkeypatch.setattr(net.encoder.layers[0], "_uncovered", lambda *args: "a reason")
    with pytest.raises(AssertionError, match="torch's own ran"):
        net(x)


def test_everything_else_stays_and_restore_is_bitwise_back():
    net, x = market(torch.float32, dropout=0.2).eval(), windows(torch.float32)
    before = copy.deepcopy(net)
    parameters, modules = dict(net.named_parameters()), {m: type(m) for m in net.modules()}
    seen = []
    net.rnn.register_forward_hook(lambda *args: seen.append("rnn"))
    net.encoder.layers[1].register_forward_pre_hook(lambda *args: seen.append("layer"))
    net.memory.requires_grad_(False)
    rng = torch.get_rng_state()
    assert len(accelerate(net).swapped) == 4
    assert torch.equal(torch.get_rng_state(), rng) and seen == []
    assert all(parameters[name] is p for name, p in net.named_parameters())
    assert net.again is net.rnn and isinstance(net.rnn, nn.GRU) and isinstance(net.encoder.layers[0], nn.TransformerEncoderLayer)
    assert not any(m.training for m in net.modules()) and not any(p.requires_grad for p in net.memory.parameters())
    assert list(net.state_dict()) == list(before.state_dict())
    net(x)
    assert seen == ["layer", "rnn", "rnn"]
    net.memory.requires_grad_(True)
    assert sorted(restore(net)) == ["encoder.layers.0", "encoder.layers.1", "memory", "rnn"]
    assert {m: type(m) for m in net.modules()} == modules
    expected = step(before, x)
    assert all(torch.equal(value, expected[name]) for name, value in step(net, x).items())


def test_an_optimizer_goes_on():
    theirs, x = market(), windows()
    ours = copy.deepcopy(theirs)
    losses = {}
    for net in (ours, theirs):
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        losses[net] = []
        for i in range(12):
            if net is ours and i == 4:
                assert accelerate(net)
            if net is ours and i == 8:
                restore(net)
            optimizer.zero_grad()
            loss = (net(x) - x[:, -1, 0]).square().mean()
            loss.backward()
            optimizer.step()
            losses[net].append(loss.item())
    assert losses[ours] == pytest.approx(losses[theirs], rel=1e-8)
    assert losses[ours][-1] < 0.8 * losses[ours][0]


def test_copies_and_pickles_stay_swapped():
    net, x = market().eval(), windows()
    accelerate(net)
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.load(buffer, weights_only=False)):
        assert isinstance(other.rnn, Swapped) and isinstance(other.encoder.layers[0], Swapped)
        assert torch.equal(other(x), net(x))
        assert len(restore(other)) == 4


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.GRU(4, 3, bidirectional=True), "it is bidirectional"),
        (nn.LSTM(4, 3, proj_size=2), "no projections"),
        (nn.TransformerEncoderLayer(8, 2, norm_first=True), "norm_first"),
        (nn.TransformerEncoderLayer(8, 2, activation="gelu"), "the module's activation is gelu"),
        (nn.TransformerEncoderLayer(8, 2, bias=False), "the kernels have biases, the module has none"),
    ],
)
def test_what_is_kept_and_why(module, reason):
    cls = type(module)
    (kept,) = accelerate(module).kept
    assert reason in kept.reason and type(module) is cls


class Loud(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


def test_other_submodules_inside_the_layer_run():
    for late in (False, True):
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        if late:
            assert accelerate(layer)
        layer.linear1.__class__ = Loud
        theirs, x = copy.deepcopy(layer), torch.randn(3, 5, 8)
        restore(theirs)
        if not late:
            assert accelerate(layer).kept[0].reason == "linear1: it is a Loud, expected a Linear"
        torch.testing.assert_close(layer(x), theirs(x))
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    assert accelerate(layer)
    seen = []
    layer.self_attn.register_forward_hook(lambda *args: seen.append(1))
    layer(torch.randn(3, 5, 8))
    assert seen == [1]


@pytest.mark.parametrize("ours", [False, True], ids=["swapped", "made"])
def test_padding_and_nested_input_run_on_torchs_own(ours):
    """torch.nn.TransformerEncoder turns padded input into a nested tensor, without a mask."""
    torch.manual_seed(0)
    theirs = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    if ours:
        net = nn.TransformerEncoder(alphakernels.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
        net.load_state_dict(theirs.state_dict())
    else:
        net = copy.deepcopy(theirs)
        assert len(accelerate(net).swapped) == 2
    x = torch.randn(3, 5, 8)
    padding = torch.arange(5)[None] >= torch.tensor([5, 3, 2])[:, None]
    with torch.no_grad():
        torch.testing.assert_close(net(x, src_key_padding_mask=padding), theirs(x, src_key_padding_mask=padding))
        torch.testing.assert_close(net(x), theirs(x))


def test_dropout_is_the_same_share():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.4, batch_first=True).train()
    theirs = copy.deepcopy(layer)
    assert accelerate(layer)
    x = torch.randn(64, 20, 64)
    with torch.no_grad():
        runs = {net: torch.stack([net(x) for _ in range(6)]) for net in (layer, theirs)}
    assert runs[layer].var(0).mean().item() == pytest.approx(runs[theirs].var(0).mean().item(), rel=0.03)
    assert torch.equal(layer.eval()(x), layer(x))


def test_restore_keeps_a_parametrization_made_since():
    layer = nn.LSTM(4, 8)
    accelerate(layer)
    nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    restore(layer)
    x = torch.randn(7, 3, 4)
    before = layer(x)[0]
    before.sum().backward()
    assert layer.parametrizations.weight_hh_l0.original0.grad.abs().sum() > 0
    with torch.no_grad():
        layer.parametrizations.weight_hh_l0.original0.mul_(0)
    assert not torch.equal(layer(x)[0], before)
    nn.utils.parametrize.remove_parametrizations(layer, "weight_hh_l0")
    assert type(layer) is nn.LSTM


def test_a_forward_replaced_and_weights_that_are_nowhere():
    layer = nn.LSTM(4, 8)
    layer.forward = nn.LSTM.forward.__get__(layer)
    assert accelerate(layer).kept[0].reason == "its forward was replaced on the module itself"
    model = nn.Sequential(nn.LSTM(4, 8, device="meta"))
    assert "meta device" in accelerate(model).kept[0].reason
    assert type(model[0]) is nn.LSTM
