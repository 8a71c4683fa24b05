"""LocalformerNet and TransformerNet by themselves; tests/qlib holds them against Qlib's."""

from __future__ import annotations

import copy

import pytest
import torch

from alphakernels import models
from alphakernels.testing import assert_close

BOTH = pytest.mark.parametrize("network", [models.LocalformerNet, models.TransformerNet])


def rows(n=7, features=6, steps=9):
    return torch.randn(n, features * steps, generator=torch.Generator().manual_seed(1))


def windows_of(x, features=6):
    return x.view(len(x), features, -1).transpose(1, 2).contiguous()


@BOTH
def test_rows_and_windows_are_one(network):
    net = network().eval()
    x = rows()
    assert net(x).shape == (7,) and net(x[:1]).shape == (1,) and net(x[:0]).shape == (0,)
    assert torch.equal(net(x), net(windows_of(x)))


@BOTH
def test_a_row_does_not_depend_on_the_batch_cut(network):
    net = network(dropout=0.0).eval()
    x = rows(200)
    with torch.no_grad():
        whole, pieces = net(x), torch.cat([net(x[:33]), net(x[33:34]), net(x[34:])])
    assert_close("rows", pieces, whole)


@BOTH
def test_low_memory_trains_the_same(network):
    net = network(dim_feedforward=50, dropout=0.3)
    other = copy.deepcopy(net)
    other.memory = "low"
    assert net.memory == "auto" and other.memory == "low"
    gradients = []
    for model in (net, other):
        torch.manual_seed(2)
        model(rows()).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@BOTH
def test_attention(network):
    net = network(d_model=12, nhead=3).eval()
    maps = net.attention(rows())
    assert maps.shape == (7, 3, 9, 9)
    assert_close("sums", maps.sum(-1), torch.ones(7, 3, 9))
    assert not torch.equal(maps, net.attention(rows(), 0))
    with pytest.raises(IndexError):
        net.attention(rows(), 2)


@BOTH
def test_shapes_are_checked(network):
    net = network()
    with pytest.raises(ValueError, match=rf"{network.__name__}: x must be of shape \[N, 6 \* T\] \(rows\) or \[N, T, 6\]"):
        net(torch.zeros(4, 7))
    with pytest.raises(ValueError, match="at most 1000 time steps, got 1001"):
        net(torch.zeros(1, 1001, 6))
