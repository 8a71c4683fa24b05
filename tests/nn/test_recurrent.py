"""GRU and LSTM in the place of torch.nn's: construction, state, outputs, and what runs on torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.utils.parametrize
from torch.nn.utils.rnn import pack_padded_sequence

import alphakernels as ak
from alphakernels import nn
from alphakernels.testing import assert_close

PAIRS = [(nn.GRU, torch.nn.GRU), (nn.LSTM, torch.nn.LSTM)]
TWINS = pytest.mark.parametrize("ours, theirs", PAIRS, ids=["GRU", "LSTM"])


def pair(ours, theirs, *sizes, **options):
    networks = []
    for make in (ours, theirs):
        torch.manual_seed(5)
        networks.append(make(*sizes, **options))
    return networks


def flat(found):
    output, states = found
    return [output, *states] if isinstance(states, tuple) else [output, states]


@TWINS
@pytest.mark.parametrize(
    "options",
    [{}, {"batch_first": True, "num_layers": 3}, {"bias": False, "num_layers": 2}, {"dtype": torch.float64}],
    ids=["defaults", "batch first", "no biases", "float64"],
)
def test_same_seed_same_weights_same_outputs(ours, theirs, options):
    one, other = pair(ours, theirs, 5, 12, **options)
    assert list(one.state_dict()) == list(other.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert repr(one) == repr(other)
    layers = options.get("num_layers", 1)
    x = torch.randn(4, 4, 5, dtype=options.get("dtype"))
    h = torch.randn(layers, 4, 12, dtype=options.get("dtype"))
    given = (h, torch.randn_like(h)) if ours is nn.LSTM else h
    for hx in (None, given):
        for a, b in zip(flat(one(x, hx)), flat(other(x, hx)), strict=True):
            assert_close("output", a, b)
            assert a.is_contiguous()


@TWINS
def test_one_sequence_without_a_batch(ours, theirs):
    for batch_first in (False, True):
        one, other = pair(ours, theirs, 3, 6, 2, batch_first=batch_first)
        x, h = torch.randn(7, 3), torch.randn(2, 6)
        for hx in (None, (h, h) if ours is nn.LSTM else h):
            for a, b in zip(flat(one(x, hx)), flat(other(x, hx)), strict=True):
                assert_close("output", a, b)


@TWINS
def test_what_the_kernel_does_not_cover_is_torchs_own(ours, theirs):
    x = torch.randn(4, 5, 3)
    packed = pack_padded_sequence(x, torch.tensor([5, 4, 2, 1]), batch_first=True)
    cases = [({"bidirectional": True}, x, "one direction"), ({}, packed, "PackedSequence")]
    if ours is nn.LSTM:
        cases.append(({"proj_size": 2}, x, "projections"))
    for options, given, reason in cases:
        one, other = pair(ours, theirs, 3, 6, batch_first=True, **options)
        told = ak.explain(one, given)
        assert told.kernel == "torch" and reason in told.reasons["cpp"]
        for a, b in zip(flat(one(given)), flat(other(given)), strict=True):
            assert torch.equal(getattr(a, "data", a), getattr(b, "data", b))
        if given is x:
            assert torch.equal(one.last(x), other(x)[0][:, -1])


@TWINS
def test_last(ours, theirs):
    for batch_first in (True, False):
        one, other = pair(ours, theirs, 3, 9, 2, batch_first=batch_first)
        x = torch.randn(6, 6, 3)
        output = other(x)[0]
        assert_close("last", one.last(x), output[:, -1] if batch_first else output[-1])


@TWINS
def test_dropout_in_training_alone(ours, theirs):
    one, _ = pair(ours, theirs, 3, 9, 2, dropout=0.5)
    x = torch.randn(5, 4, 3)
    assert not torch.equal(one(x)[0], one(x)[0])
    one.eval()
    assert torch.equal(one(x)[0], one(x)[0])


@TWINS
def test_copies_casts_and_functional_calls(ours, theirs):
    one, other = pair(ours, theirs, 3, 6)
    x = torch.randn(4, 5, 3)
    assert torch.equal(copy.deepcopy(one)(x)[0], one(x)[0])
    zeros = {name: torch.zeros_like(p) for name, p in one.named_parameters()}
    assert not torch.func.functional_call(one, zeros, (x,))[0].any()
    assert_close("float64", one.double()(x.double())[0], other.double()(x.double())[0])


def test_one_stock_of_a_large_lstm_goes_straight_to_torchs_own():
    """What has to hold all the same: requests, weights from elsewhere, messages, what explain says."""
    one, other = pair(nn.LSTM, torch.nn.LSTM, 3, 300)
    x, states = torch.randn(5, 1, 3), (torch.randn(1, 1, 300), torch.randn(1, 1, 300))
    for hx in (None, states):
        for found, expected in zip(flat(one(x, hx)), flat(other(x, hx)), strict=True):
            assert torch.equal(found, expected)
    told = ak.explain(one, x)
    assert told.kernel == "torch" and "oneDNN's LSTM trains faster with fewer than 6 rows" in told.reasons["cpp"]
    assert ak.explain(one, x[:, 0]).kernel == "torch"  # by the op
    with ak.use_backend("cpp"):
        assert ak.explain(one, x).kernel == "cpp"
        assert_close("asked for", one(x)[0], other(x)[0])
    zeros = {name: torch.zeros_like(p) for name, p in one.named_parameters()}
    assert not torch.func.functional_call(one, zeros, (x,))[0].any()
    torch.nn.utils.parametrize.register_parametrization(one, "weight_hh_l0", Halved())
    with torch.no_grad():
        other.weight_hh_l0.mul_(0.5)
    assert_close("parametrized", one(x)[0], other(x)[0])
    for given, hx, error, message in (
        (x[None], None, ValueError, "LSTM: input must be of shape"),
        (x[..., :2], None, ValueError, "recurrent: x must be of 3 features"),
        (x[:0], None, ValueError, "recurrent: x must be of at least one time step"),
        (x.double(), None, TypeError, "recurrent: x must be of dtype torch.float32"),
        (x, states[:1], TypeError, "LSTM: hx must be a pair"),
    ):
        for network in (one, nn.LSTM(3, 300)):
            with pytest.raises(error, match=message):
                network(given, hx)


class Halved(torch.nn.Module):
    def forward(self, weight):
        return 0.5 * weight


@TWINS
def test_training_learns_what_torchs_learns(ours, theirs):
    losses = []
    for network in pair(ours, theirs, 4, 8, 2):
        torch.manual_seed(0)
        x, y = torch.randn(6, 30, 4), torch.randn(30, 8)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            loss = (network(x)[0][-1] - y).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.detach())
    assert losses[0] < 1.2
    assert_close("loss", losses[0], losses[1])


def test_attention_pool_is_the_sequential_it_stands_for():
    pool = nn.AttentionPool(20, dropout=0.25)
    assert [name for name, _ in pool.named_parameters()] == ["att_fc_in.weight", "att_fc_in.bias", "att_fc_out.weight"]
    h = torch.randn(6, 9, 20)
    pool.eval()
    weights = torch.nn.Sequential.forward(pool, h)
    out, given = pool(h, return_weights=True)
    assert_close("weights", given, weights.squeeze(2))
    assert_close("out", out, torch.cat([h[:, -1], (h * weights).sum(1)], 1))
    pool.train()
    assert not torch.equal(pool(h), pool(h))


@TWINS
def test_gradients_by_torch_func(ours, theirs):
    one, other = pair(ours, theirs, 3, 6, 2)
    x = torch.randn(4, 5, 3)

    def loss(network):
        return lambda parameters, x: torch.func.functional_call(network, parameters, (x,))[0].square().sum()

    found = torch.func.grad(loss(one))(dict(one.named_parameters()), x)
    expected = torch.func.grad(loss(other))(dict(other.named_parameters()), x)
    for name, gradient in expected.items():
        assert_close(name, found[name], gradient)
    # Of each sequence, which torch's own LSTM on the CPU cannot.
    samples = torch.func.vmap(torch.func.grad(loss(one)), in_dims=(None, 1))(dict(one.named_parameters()), x)
    for name, gradient in expected.items():
        assert_close(name, samples[name].sum(0), gradient)


@TWINS
def test_half_precision_trains_compiled(ours, theirs):
    """There is no kernel for it on the CPU, and traced, oneDNN's cannot go backward."""
    one, other = pair(ours, theirs, 3, 6, dtype=torch.bfloat16)
    x = torch.randn(4, 5, 3, dtype=torch.bfloat16)
    for network, call in ((one, torch.compile(one, backend="aot_eager")), (other, other)):
        call(x)[0].square().sum().backward()
        assert network.weight_hh_l0.grad.isfinite().all()
    assert_close("gradient", one.weight_hh_l0.grad, other.weight_hh_l0.grad)


@pytest.mark.parametrize(
    "module, given, error, message",
    [
        (nn.LSTM(4, 8), (torch.zeros(7, 3, 4), torch.zeros(1, 3, 8)), TypeError, r"LSTM: hx must be a pair \(h_0, c_0\), got Tensor"),
        (nn.LSTM(4, 8), (torch.zeros(7, 4), (torch.zeros(1, 1, 8),) * 2), ValueError, r"LSTM: h_0 must be of shape \[1, 8\] with one sequence"),
        (nn.GRU(4, 8), (torch.zeros(7, 3, 4), torch.zeros(1, 8)), ValueError, r"GRU: hx must be of shape \[1, B, 8\], got \[1, 8\]"),
        (nn.GRU(4, 8), (torch.zeros(4),), ValueError, r"GRU: input must be of shape \[T, B, I\], or \[T, I\] of one sequence, got \[4\]"),
        (nn.GRU(4, 8), ([1.0],), TypeError, "GRU: input must be a torch.Tensor, got list"),
    ],
    ids=["one state of two", "a state of a batch", "a state of one sequence", "a row", "a list"],
)
def test_bad_input(module, given, error, message):
    with pytest.raises(error, match=message):
        module(*given)
