"""SFMNet against Qlib's SFM_Model: initial weights, outputs, gradients, state dicts exchanged both ways.

Qlib's S is float64 because its frequencies are, but its amplitudes are cut back by `.float()`: in float64 it does not run unless that
is taken out. Its gradients go through torch's hardsigmoid, whose derivative is 1/6 in float32 even for float64.
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from alphakernels.models import SFMNet
from alphakernels.testing import Tolerance, assert_close, assert_no_worse_than_eager

qlib = pytest.importorskip("qlib.contrib.model.pytorch_sfm")

SIZES = {
    "qlib's defaults": dict(),
    "alpha360": dict(d_feat=6, freq_dim=25, hidden_size=64),
    "two outputs": dict(d_feat=3, output_dim=2, freq_dim=5, hidden_size=7),
    "one frequency": dict(d_feat=2, freq_dim=1, hidden_size=3),
    "dropouts without effect": dict(d_feat=4, freq_dim=6, hidden_size=10, dropout_W=0.5, dropout_U=0.3),
}
STEPS = 20


def pair(name, seed=3):
    networks = []
    for make in (qlib.SFM_Model, SFMNet):
        torch.manual_seed(seed)
        networks.append(make(**SIZES[name]))
    return networks


def lively(theirs, ours):
    """The same weights in both, no bias of which is zero or one."""
    generator = torch.Generator().manual_seed(5)
    for name, t in theirs.state_dict().items():
        if name.startswith("b_"):
            t += 0.3 * torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype)
    ours.load_state_dict(theirs.state_dict())


def rows(name, n=33, steps=STEPS, dtype=torch.float32):
    x = torch.randn(n, SIZES[name].get("d_feat", 6) * steps, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x.to(dtype)


def outputs_and_gradients(network, x):
    x = x.clone().requires_grad_()
    network.zero_grad()
    y = network(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (y * weights.to(y.dtype)).sum().backward()
    return {"y": y.detach(), "gradient of x": x.grad} | {f"gradient of {n}": p.grad for n, p in network.named_parameters()}


class ExactHardsigmoid(nn.Module):
    def forward(self, z):
        return (z / 6 + 0.5).clamp(0, 1)


@contextmanager
def float64(monkeypatch):
    """New networks are float64, and `.float()` leaves a tensor as it is."""
    torch.set_default_dtype(torch.float64)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "float", lambda self: self)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("seed", [0, 42])
@pytest.mark.parametrize("name", SIZES)
def test_start_bitwise_equal(name, seed):
    theirs, ours = pair(name, seed)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    for key, t in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], t), key
    after = []
    for make in (qlib.SFM_Model, SFMNet):
        torch.manual_seed(seed)
        make(**SIZES[name])
        after.append(torch.rand(3))
    assert torch.equal(*after)


@pytest.mark.parametrize("name", SIZES)
def test_in_float64(name, monkeypatch):
    with float64(monkeypatch):
        theirs, ours = pair(name)
        lively(theirs, ours)
        x = rows(name, dtype=torch.float64)
        with torch.no_grad():
            assert_close("y", ours(x), theirs(x), tolerance=Tolerance(0, 1e-9))
        loose = outputs_and_gradients(theirs, x)
        theirs.inner_activation = ExactHardsigmoid()
        expected, got = outputs_and_gradients(theirs, x), outputs_and_gradients(ours, x)
    for what, t in expected.items():
        assert got[what].dtype == torch.float64
        assert_close(what, got[what], t, tolerance=Tolerance(0, 1e-9))
        assert_close(what, got[what], loose[what], tolerance=Tolerance(0, 1e-6))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", SIZES)
def test_in_float32(name, training):
    theirs, ours = (network.train(training) for network in pair(name))
    lively(theirs, ours)
    x = rows(name)
    expected, got = outputs_and_gradients(theirs, x), outputs_and_gradients(ours, x)
    for what, t in expected.items():
        assert got[what].dtype == torch.float32
        assert_close(what, got[what], t, tolerance=Tolerance(1e-5, 5e-6))


def test_float32_over_sixty_steps():
    """Angles reach 2 pi 60, which Qlib rounds to float32; so does the default variant, and "paper" does not."""
    theirs, ours = pair("alpha360")
    lively(theirs, ours)
    x = rows("alpha360", n=40, steps=60)
    with torch.no_grad():
        expected, got = theirs(x), ours(x)
        assert_close("y", got, expected, tolerance=Tolerance(1e-5, 2e-6))
        paper = SFMNet(**SIZES["alpha360"], variant="paper")
        paper.load_state_dict(ours.state_dict())
        assert_close("y", paper(x), expected, tolerance=Tolerance(1e-3, 1e-4))


def test_float32_is_no_further_from_float64_than_qlibs_own(monkeypatch):
    theirs, ours = pair("alpha360")
    lively(theirs, ours)
    x = rows("alpha360", n=200)
    their_y, our_y = theirs(x).detach(), ours(x).detach()
    with float64(monkeypatch):
        exact = qlib.SFM_Model(**SIZES["alpha360"])
        exact.load_state_dict(theirs.state_dict())
        y = exact(x.double()).detach()
    assert_no_worse_than_eager("y", our_y, their_y, y)


@pytest.mark.parametrize("name", ["alpha360", "two outputs"])
def test_state_dicts_go_both_ways(tmp_path, name):
    for source, target in ((0, 1), (1, 0)):
        networks = pair(name, seed=3)[source], pair(name, seed=30)[target]
        torch.save(networks[0].state_dict(), tmp_path / "state.pt")
        networks[1].load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        with torch.no_grad():
            one, other = (network.eval()(rows(name)) for network in networks)
        assert_close("prediction", other, one, tolerance=Tolerance(1e-5, 2e-6))


def test_a_single_row_keeps_its_axis_where_qlib_loses_it():
    theirs, ours = pair("alpha360")
    x = rows("alpha360", n=1)
    with torch.no_grad():
        assert theirs(x).shape == () and ours(x).shape == (1,)
        assert_close("prediction", ours(x)[0], theirs(x), tolerance=Tolerance(1e-5, 2e-6))
