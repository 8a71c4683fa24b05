"""GATs and HIST: both input styles, days in one call, one stock, concepts without stock, the attention's rows."""

from __future__ import annotations

import io

import pytest
import torch

import alphakernels as ak
from alphakernels.models import GATsNet, HISTNet
from alphakernels.ops._days import on_device
from alphakernels.testing import Tolerance, assert_close

F, T, K = 3, 5, 7
NEAR = Tolerance(1e-5, 1e-6)


def network(cls, seed=0, **more):
    torch.manual_seed(seed)
    return cls(d_feat=F, hidden_size=8, num_layers=2, **more)


def rows(n, seed=0, width=F * T):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def concepts(n, seed=0):
    """About two concepts a stock; the first stock has none, the last concept no stock."""
    matrix = (torch.rand(n, K, generator=torch.Generator().manual_seed(seed)) < 0.3).float()
    matrix[0], matrix[:, -1] = 0, 0
    return matrix


def arguments(cls, n, seed=0, x=None):
    x = rows(n, seed) if x is None else x
    return (x, concepts(n, seed)) if cls is HISTNet else (x,)


BOTH = pytest.mark.parametrize("cls", [GATsNet, HISTNet])


@BOTH
@pytest.mark.parametrize("base_model", ["GRU", "LSTM"])
def test_rows_and_windows_are_two_views_of_the_same(cls, base_model):
    net = network(cls, base_model=base_model)
    x = rows(11)
    windows = x.reshape(11, F, T).transpose(1, 2)
    assert torch.equal(net(*arguments(cls, 11, x=x)), net(*arguments(cls, 11, x=windows)))


@BOTH
def test_an_mlp_takes_tabular_features(cls):
    net = network(cls, base_model="MLP", dropout=0.2)
    out = net(*arguments(cls, 9, x=rows(9, width=F)))
    out.sum().backward()
    assert out.shape == (9,) and all(p.grad.isfinite().all() for p in net.rnn.parameters())
    with pytest.raises(ValueError, match=r"with base_model='MLP' x must be of shape \[N, 3\], got \[9, 15\]"):
        net(*arguments(cls, 9))


@BOTH
@pytest.mark.parametrize("n", [1, 2, 3, 20])
def test_days_of_few_stocks(cls, n):
    net = network(cls)
    out = net(*arguments(cls, n))
    out.square().sum().backward()
    assert out.shape == (n,) and out.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


@BOTH
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_days_in_one_call_are_days_apart(cls, backend):
    net = network(cls)
    sizes = [4, 1, 0, 13]
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    given = arguments(cls, 18)
    with ak.use_backend(backend):
        together = net(*given, offsets)
        apart = torch.cat([net(*(t[a:b] for t in given)) for a, b in zip(offsets, offsets[1:], strict=False) if b > a])
        assert_close("scores", together, apart, tolerance=NEAR)
        grads = []
        for scores in (together, apart):
            net.zero_grad()
            scores.square().sum().backward()
            grads.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    for name, grad in grads[0].items():
        assert_close(name, grad, grads[1][name], tolerance=Tolerance(1e-4, 1e-5, 1e-6))


def test_offsets_travel_to_where_the_rows_are():
    offsets = torch.tensor([0, 5, 12])
    assert on_device(offsets, torch.device("cpu")) is offsets
    assert on_device(None, torch.device("meta")) is None
    assert on_device(offsets, torch.device("meta")).device.type == "meta"


@BOTH
def test_permuting_the_stocks_permutes_the_scores(cls):
    net = network(cls).double()
    given = [t.double() for t in arguments(cls, 30)]
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    assert_close("scores", net(*(t[order] for t in given)), net(*given)[order], tolerance=Tolerance(1e-10, 1e-10))


@BOTH
def test_kernels_and_reference_agree(cls):
    """In float64, gradients included. That of `transformation.bias` is nearly zero: a shift of all scores moves the kink alone."""
    net = network(cls).double()
    given = [t.double() for t in arguments(cls, 70)]
    results = []
    for backend in ("auto", "reference"):
        with ak.use_backend(backend):
            net.zero_grad()
            out = net(*given)
            out.square().sum().backward()
        results.append({"out": out} | {k: p.grad for k, p in net.named_parameters() if p.grad is not None})
    for name, value in results[0].items():
        assert_close(name, value, results[1][name], tolerance=Tolerance(1e-9, 1e-9, 1e-14))


@BOTH
def test_unknown_base_and_shapes(cls):
    with pytest.raises(ValueError, match=rf"{cls.__name__}: base_model must be one of GRU, LSTM, MLP, got 'RNN'"):
        cls(base_model="RNN")
    with pytest.raises(ValueError, match=rf"{cls.__name__}: x must be of shape"):
        network(cls)(*arguments(cls, 4, x=rows(4, width=F * T + 1)))


@BOTH
def test_saved_and_loaded(cls):
    net, other = network(cls), network(cls, seed=1)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(net(*arguments(cls, 6)), other(*arguments(cls, 6)))


@BOTH
def test_same_bits_with_any_number_of_threads(cls, threads):
    results = []
    for number in (1, 2, 3):
        threads(number)
        net = network(cls)
        out = net(*arguments(cls, 150))
        out.square().sum().backward()
        results.append([out, *(p.grad for p in net.rnn.parameters())])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_close("between numbers of threads", a, b, tolerance=NEAR)  # torch's own layers between the ops


def test_attention_of_chosen_stocks():
    net = network(GATsNet)
    x, offsets = rows(12), torch.tensor([0, 5, 12])
    weights = net.attention(x, torch.tensor([2, 11]), offsets)
    assert weights.shape == (2, 12) and not weights.requires_grad
    assert_close("sums", weights.sum(1), torch.ones(2))
    assert not weights[0, 5:].any() and not weights[1, :5].any() and (weights[0, :5] > 0).all()


def test_concept_matrices():
    net = network(HISTNet)
    x = rows(6)
    assert net(x, torch.zeros(6, K)).isfinite().all()
    assert_close("no concepts", net(x, torch.zeros(6, 0)), net(x, torch.zeros(6, K)))
    for dtype in (torch.bool, torch.int64, torch.float64):
        assert torch.equal(net(x, concepts(6).to(dtype)), net(x, concepts(6)))
    chosen = torch.tensor([5, 0, 0, 3, 1, 2])
    assert torch.equal(net(x, concepts(6), stocks=chosen), net(x, concepts(6)[chosen]))
    with pytest.raises(ValueError, match=r"HISTNet: concept_matrix must be of shape \[6, K\], got \[5, 7\]"):
        net(x, torch.zeros(5, K))
