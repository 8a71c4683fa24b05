"""MLPNet: names, initial weights, numbers against a plain composition."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alphakernels.models import MLPNet
from alphakernels.testing import assert_close

SMALL = dict(input_dim=7, output_dim=2, layers=(9, 5))


def small(seed=0, **changes):
    torch.manual_seed(seed)
    return MLPNet(**SMALL | changes)


def batch(rows=33, dtype=torch.float32):
    return torch.randn(rows, 7, generator=torch.Generator().manual_seed(rows)).to(dtype)


def test_state_dict_names_and_initial_weights_are_qlibs():
    """The same seed: all layers made one after the other, then all weights drawn anew."""
    state = small(seed=5).state_dict()
    torch.manual_seed(5)
    sizes = {"dnn_layers.1.0": (7, 9), "dnn_layers.2.0": (9, 5), "dnn_layers.4": (5, 2)}
    layers = {name: nn.Linear(*size) for name, size in sizes.items()}
    expected = []
    for name, layer in layers.items():
        nn.init.kaiming_normal_(layer.weight, a=0.1, mode="fan_in", nonlinearity="leaky_relu")
        assert torch.equal(state[f"{name}.weight"], layer.weight), name
        assert torch.equal(state[f"{name}.bias"], layer.bias), name
        expected += [f"{name}.weight", f"{name}.bias"]
        if name != "dnn_layers.4":
            norm = name[:-1] + "1"
            expected += [f"{norm}.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
    assert list(state) == expected


@pytest.mark.parametrize("act", ["LeakyReLU", "SiLU"])
@pytest.mark.parametrize("training", [True, False])
def test_equals_a_plain_composition(act, training):
    net = small(act=act).double().train(training)
    twin, x = copy.deepcopy(net), batch(dtype=torch.float64)
    torch.manual_seed(3)
    y = net(x)
    torch.manual_seed(3)
    h = F.dropout(x, 0.05, training)
    for linear, norm, _ in (twin.dnn_layers[1], twin.dnn_layers[2]):
        h = F.batch_norm(linear(h), norm.running_mean, norm.running_var, norm.weight, norm.bias, training)
        h = F.leaky_relu(h, 0.1) if act == "LeakyReLU" else h * torch.sigmoid(h)
    assert_close("y", y, twin.dnn_layers[4](F.dropout(h, 0.05, training)))
    for name, t in net.named_buffers():
        if t.is_floating_point():
            assert_close(name, t, dict(twin.named_buffers())[name])


def test_no_hidden_layer_is_a_linear_model():
    net, x = small(layers=()).eval(), batch()
    assert_close("y", net(x), F.linear(x, net.dnn_layers[2].weight, net.dnn_layers[2].bias))


@pytest.mark.parametrize("rows", [0, 1, 33])
def test_keeps_its_axes(rows):
    assert small(output_dim=1).eval()(batch(rows)).shape == (rows, 1)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: small()(torch.zeros(4, 6)), r"MLPNet: x must be of shape \[N, 7\], got \[4, 6\]"),
        (lambda: small()(torch.zeros(7)), r"MLPNet: x must be of shape \[N, 7\], got \[7\]"),
        (lambda: small(act="ReLU"), "MLPNet: act must be one of LeakyReLU, SiLU, got 'ReLU'"),
        (lambda: small()(batch(1)), "more than 1 value per channel"),
    ],
)
def test_bad_inputs(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_round_trips():
    net, x = small().eval(), batch()
    loaded = small(seed=9).eval()
    loaded.load_state_dict(net.state_dict())
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), loaded):
        assert torch.equal(again(x), net(x))
