"""SFMNet and the SFM layer: names, initial weights, both kinds of input, both variants, and what torch does with a module."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import alphakernels as ak
from alphakernels import ops
from alphakernels.models import SFMNet
from alphakernels.nn import SFM
from alphakernels.testing import Tolerance, assert_close

D, H, FREQUENCIES, T = 3, 9, 5, 7
SMALL = dict(d_feat=D, hidden_size=H, freq_dim=FREQUENCIES)
GATES = ("i", "ste", "fre", "c", "o")


def small(seed=0, **changes):
    torch.manual_seed(seed)
    return SFMNet(**SMALL | changes)


def batch(rows=11, steps=T, dtype=torch.float32):
    """Rows [N, D * T], the steps of a feature side by side."""
    return torch.randn(rows, D * steps, generator=torch.Generator().manual_seed(rows)).to(dtype)


def windows(x):
    return x.view(x.shape[0], D, -1).transpose(1, 2)


def test_state_dict_names_and_initial_weights_are_qlibs():
    """The same seed, the same tensors drawn one after the other."""
    state = small(seed=5, output_dim=2).state_dict()
    torch.manual_seed(5)
    expected = {}
    for gate in GATES:
        columns = FREQUENCIES if gate == "fre" else H
        expected[f"W_{gate}"] = nn.init.xavier_uniform_(torch.empty(D, columns))
        expected[f"U_{gate}"] = nn.init.orthogonal_(torch.empty(H, columns))
        expected[f"b_{gate}"] = torch.full((columns,), 1.0 if gate in ("ste", "fre") else 0.0)
    expected["U_a"] = nn.init.orthogonal_(torch.empty(FREQUENCIES, 1))
    expected["b_a"] = torch.zeros(H)
    expected["W_p"] = nn.init.xavier_uniform_(torch.empty(H, 2))
    expected["b_p"] = torch.zeros(2)
    head = nn.Linear(2, 1)
    expected |= {"fc_out.weight": head.weight, "fc_out.bias": head.bias}
    assert list(state) == list(expected)
    for name, t in expected.items():
        assert torch.equal(state[name], t), name


def test_qlibs_defaults():
    shapes = {name: tuple(t.shape) for name, t in SFMNet().state_dict().items()}
    assert shapes["W_i"] == (6, 64) and shapes["U_fre"] == (64, 10) and shapes["W_p"] == (64, 1)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("output_dim", [1, 3])
def test_equals_its_parts(backend, output_dim):
    net = small(output_dim=output_dim).double()
    for p in net.parameters():
        p.data += 0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())).double()
    x = batch(dtype=torch.float64)
    with ak.use_backend(backend):
        y = net(x)
    weights = [torch.cat([net.get_parameter(f"{kind}_{gate}") for gate in ("i", "ste", "c", "o", "fre")], -1) for kind in "WUb"]
    with ak.use_backend("reference"):
        h = ops.sfm(windows(x), *weights, net.U_a[:, 0], net.b_a)
    assert_close("y", y, F.linear(h @ net.W_p + net.b_p, net.fc_out.weight, net.fc_out.bias)[:, 0])


def test_rows_and_windows_are_the_same_input():
    net, x = small(), batch()
    expected = net(x)
    for again in (windows(x), windows(x).contiguous(), windows(x).flip(1).flip(1)):
        assert torch.equal(net(again), expected)


@pytest.mark.parametrize("rows", [0, 1, 2, 33])
@pytest.mark.parametrize("output_dim", [1, 3])
def test_one_number_a_row(rows, output_dim):
    net = small(output_dim=output_dim)
    y = net(batch(rows))
    assert y.shape == (rows,) and y.isfinite().all()
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_layer_gives_the_hidden_state():
    torch.manual_seed(0)
    layer = SFM(D, FREQUENCIES, H)
    net = small()
    net.load_state_dict(net.state_dict() | layer.state_dict())
    x = windows(batch())
    h = layer(x)
    assert h.shape == (11, H)
    assert_close("y", net(x), net.fc_out(h @ net.W_p + net.b_p)[:, 0])


def test_nothing_is_kept_between_calls():
    net, x = small(), batch()
    expected, before = net(x), dict(vars(net))
    with pytest.raises((RuntimeError, TypeError)):
        net(x.double())
    net(batch(rows=4, steps=3))
    assert torch.equal(net(x), expected)
    assert vars(net).keys() == before.keys()


def test_dropouts_are_without_effect_as_in_qlib():
    net, plain, x = small(dropout_W=0.5, dropout_U=0.5).train(), small().train(), batch()
    torch.manual_seed(1)
    assert torch.equal(net(x), plain(x))
    after = torch.rand(2)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(2), after)  # no random number was drawn


@pytest.mark.parametrize("dropout_W, dropout_U", [(0.4, 0.0), (0.0, 0.4), (0.3, 0.6)])
def test_dropouts_of_the_paper(dropout_W, dropout_U):
    """One mask a row for all its steps: on the features, and on the hidden state where it enters the gates."""
    net = small(dropout_W=dropout_W, dropout_U=dropout_U, variant="paper").double().train()
    x = batch(dtype=torch.float64)
    torch.manual_seed(1)
    y = net(x)
    torch.manual_seed(1)
    masked, mask = windows(x), None
    if dropout_W:
        masked = masked * F.dropout(torch.ones(11, 1, D, dtype=torch.float64), dropout_W)
    if dropout_U:
        mask = F.dropout(torch.ones(11, H, dtype=torch.float64), dropout_U)
    h = ops.sfm(masked, net._columns("W"), net._columns("U"), net._columns("b"), net.U_a[:, 0], net.b_a, hidden_mask=mask)
    assert_close("y", y, net.fc_out(h @ net.W_p + net.b_p)[:, 0])
    assert not torch.equal(net(x), y)
    plain = small(variant="paper").double()
    assert torch.equal(net.eval()(x), plain.eval()(x))


def test_paper_takes_exact_angles():
    one, other = small(), small(variant="paper")
    x = torch.zeros(1, 60, D)
    exact = ops.fourier_waves(60, FREQUENCIES, dtype=torch.float32)
    assert torch.equal(other._waves(60, x), exact)
    assert 0 < (one._waves(60, x) - exact).abs().max() < 3e-5
    assert torch.equal(one._waves(60, x.double()), other._waves(60, x.double()))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: small()(torch.zeros(4, 20)), r"SFMNet: x must be of shape \[N, 3 \* T\] or \[N, T, 3\], got \[4, 20\]"),
        (lambda: small()(torch.zeros(4, 0)), r"x must be of shape .* got \[4, 0\]"),
        (lambda: small()(torch.zeros(4, 3, 7)), r"x must be of shape .* got \[4, 3, 7\]"),
        (lambda: small()(torch.zeros(21)), r"x must be of shape .* got \[21\]"),
        (lambda: SFM(3)(torch.zeros(4, 7)), r"SFM: x must be of shape \[B, T, 3\], got \[4, 7\]"),
        (lambda: small(variant="papre"), "SFMNet: variant must be one of qlib, paper, got 'papre'"),
        (lambda: SFM(dropout_U=1.0), r"SFM: dropout_U must be in \[0, 1\), got 1.0"),
        (lambda: small(dropout_W=-0.1), r"SFMNet: dropout_W must be in \[0, 1\), got -0.1"),
    ],
)
def test_bad_inputs(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_inputs_are_not_written_to():
    x = batch()
    before = x.clone()
    small(dropout_W=0.5, dropout_U=0.5, variant="paper")(x).sum().backward()
    assert torch.equal(x, before)


def test_round_trips():
    net, x = small(), batch()
    expected = net(x)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    loaded = small(seed=9)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), loaded):
        assert torch.equal(again(x), expected)


@pytest.mark.parametrize("variant", ["qlib", "paper"])
def test_compile_in_one_graph(variant):
    torch._dynamo.reset()
    net = small(variant=variant)
    twin = copy.deepcopy(net)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for rows, steps in ((11, T), (5, 4)):
        results = []
        for module, forward in ((net, net), (twin, compiled)):
            module.zero_grad()
            y = forward(batch(rows, steps))
            y.square().sum().backward()
            results.append({"y": y} | {name: p.grad for name, p in module.named_parameters()})
        for name, expected in results[0].items():
            assert_close(name, results[1][name], expected)
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_export(backend):
    net, x = small(), batch(steps=3)
    with ak.use_backend(backend), torch.no_grad():
        program = torch.export.export(net, (x,))
        assert_close("y", program.module()(x), net(x))
    used = any("alphakernels" in str(node.target) for node in program.graph.nodes)
    assert used == (backend == "auto" and ak.explain(net, x).kernel == "cpp")


def test_autocast():
    net, x = small(), batch()
    expected = net(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(x)
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in net.parameters())
    assert_close("y", y.float(), expected, tolerance=Tolerance(2e-2, 2e-2))  # the head's products are bfloat16


def test_same_bits_with_any_number_of_threads(threads):
    results = []
    for number in (1, 2, 4, 1):
        threads(number)
        net = small(hidden_size=20)
        net(batch(rows=100)).square().sum().backward()
        results.append([p.grad for p in net.parameters() if p.dim() < 2 or p.shape[1] > 1])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_it_learns_a_frequency():
    """A target that depends on how fast each row oscillates, which a linear model of the last step cannot see."""
    generator = torch.Generator().manual_seed(0)
    period = torch.where(torch.rand(256, generator=generator) < 0.5, 3.0, 8.0)  # [N]
    phase = 6.28 * torch.rand(256, generator=generator)
    t = torch.arange(16.0)
    x = torch.sin(6.2832 * t / period[:, None] + phase[:, None])  # [N, T]
    y = (period == 3.0).float()
    torch.manual_seed(0)
    net = SFMNet(d_feat=1, hidden_size=16, freq_dim=8)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
    for _ in range(80):
        loss = (net(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
