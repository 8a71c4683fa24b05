"""accelerate and restore on modules of pytorch-tabnet and entmax, and what they must leave as it is."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import alphakernels
from alphakernels import accelerate, restore
from alphakernels.swap import _pytorch_tabnet, _sparsemax
from alphakernels.swap._swapped import Swapped
from alphakernels.testing import TOLERANCES, assert_close

entmax = pytest.importorskip("entmax")
tab_network = pytest.importorskip("pytorch_tabnet.tab_network")

FEATURES = 11


def network(groups=None, **options):
    torch.manual_seed(3)
    groups = torch.eye(FEATURES) if groups is None else groups
    options = {"n_d": 5, "n_a": 4, "n_steps": 2, "virtual_batch_size": 16, **options}
    return tab_network.TabNet(FEATURES, 1, group_attention_matrix=groups, **options)


def rows(count=48, seed=0):
    return torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(seed))


def step(net, x):
    """Outputs and gradients by name."""
    net.zero_grad()
    out, sparsity = net(x.clone())
    (out.square().mean() - 0.1 * sparsity).backward()
    found = {"out": out.detach(), "sparsity": sparsity.detach()}
    return found | {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def same(ours, theirs, tolerance=None):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert_close(name, ours[name], tensor, tolerance=tolerance)


# The original in float32 is itself only so near; what it keeps in float64 is compared exactly.
FLOAT32 = TOLERANCES[torch.float32]._replace(relative=1e-4, of_largest=3e-5, absolute=1e-7)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("count", "options"),
    [(48, {}), (16, {}), (2, {}), (100, {}), (101, {}), (48, {"n_shared": 0}), (9, {"n_independent": 0}), (48, {"groups": True})],
)
def test_tabnet_network_in_float64(training, count, options):
    if options.get("groups"):
        options = {"groups": torch.tensor([[1.0] * 5 + [0] * 6, [0.0] * 5 + [1] * 6])}
    theirs = network(**options).double().train(training)
    theirs.tabnet.encoder.group_attention_matrix = theirs.tabnet.encoder.group_attention_matrix.double()
    ours = copy.deepcopy(theirs)
    report = accelerate(ours)
    assert not report.kept, report
    x = rows(count).double()
    same(step(ours, x), step(theirs, x), TOLERANCES[torch.float64]._replace(relative=1e-7, of_largest=1e-7))
    same(ours.state_dict(), theirs.state_dict(), TOLERANCES[torch.float64]._replace(relative=1e-9, absolute=1e-12))


def test_training_goes_the_same_way_and_back():
    theirs, x = network(), rows(64)
    ours = copy.deepcopy(theirs)
    accelerate(ours)
    losses = {}
    for net in (ours, theirs):
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        losses[net] = []
        for _ in range(10):
            optimizer.zero_grad()
            out, sparsity = net(x)
            loss = (out.squeeze(1) - x[:, 0]).square().mean() - 1e-3 * sparsity
            loss.backward()
            optimizer.step()
            losses[net].append(loss.item())
    assert losses[ours] == pytest.approx(losses[theirs], rel=1e-4)
    assert losses[ours][-1] < losses[ours][0]


def test_restore_is_bitwise_back():
    net, x = network(), rows()
    before = copy.deepcopy(net)
    classes = {name: type(m) for name, m in net.named_modules()}
    report = accelerate(net)
    assert type(net.tabnet.encoder) is not classes["tabnet.encoder"]
    assert isinstance(net.tabnet.encoder, classes["tabnet.encoder"])
    assert sorted(restore(net)) == sorted(s.name for s in report.swapped)
    assert {name: type(m) for name, m in net.named_modules()} == classes
    assert all(torch.equal(t, before.state_dict()[name]) for name, t in net.state_dict().items())
    expected = step(before, x)
    assert all(torch.equal(value, expected[name]) for name, value in step(net, x).items())
    assert restore(net) == []


def test_everything_else_stays():
    net = network().eval()
    net.tabnet.encoder.initial_splitter.requires_grad_(False)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    modules, parameters = dict(net.named_modules()), dict(net.named_parameters())
    state = {name: t.clone() for name, t in net.state_dict().items()}
    seen = []
    net.tabnet.encoder.register_forward_hook(lambda module, inputs, output: seen.append("after"))
    net.tabnet.encoder.register_forward_pre_hook(lambda module, inputs: seen.append("before"))
    rng = torch.get_rng_state()
    assert accelerate(net)
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.get_default_dtype() == torch.float32
    assert seen == []
    assert all(modules[name] is m for name, m in net.named_modules())
    assert all(parameters[name] is p and torch.equal(p.grad, torch.ones_like(p)) for name, p in net.named_parameters())
    assert all(torch.equal(state[name], t) for name, t in net.state_dict().items())
    assert not any(m.training for m in net.modules())
    assert not any(p.requires_grad for p in net.tabnet.encoder.initial_splitter.parameters())
    shared = net.tabnet.encoder.initial_splitter.shared.glu_layers[0].fc
    assert shared is net.tabnet.encoder.feat_transformers[1].shared.glu_layers[0].fc
    net(rows())
    assert seen == ["before", "after"]


def test_a_second_call_swaps_nothing_and_a_model_can_be_its_own_module():
    net = network()
    assert accelerate(net)
    again = accelerate(net)
    assert not again and not again.kept
    alone = entmax.Sparsemax(dim=1)
    report = accelerate(alone)
    assert [s.name for s in report.swapped] == [""]
    assert type(alone).__name__ == "Sparsemax"
    assert restore(alone) == [""]


def test_copies_and_pickles_stay_swapped(tmp_path):
    net, x = network().eval(), rows()
    accelerate(net)
    expected = net(x)[0]
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.load(buffer, weights_only=False)):
        assert isinstance(other.tabnet.encoder, Swapped)
        assert torch.equal(other(x)[0], expected)
        assert len(restore(other)) == len([m for m in net.modules() if isinstance(m, Swapped)])


def test_a_hook_inside_is_seen_before_and_after():
    net = network()
    inner = net.tabnet.encoder.att_transformers[1].bn.bn
    seen = []
    handle = inner.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    report = accelerate(net)
    reasons = {kept.name: kept.reason for kept in report.kept}
    assert reasons["tabnet.encoder.att_transformers.1.bn"] == "bn: it has hooks, which the fused forward would not call"
    assert reasons["tabnet.encoder.att_transformers.1"] == "bn: it is a GBN that was not swapped"
    assert reasons["tabnet.encoder"] == "att_transformers.1: it is a AttentiveTransformer that was not swapped"
    net(rows(32))
    assert seen == [16, 16]
    handle.remove()
    assert not accelerate(net).kept
    expected = step(copy.deepcopy(net), rows(32))
    seen.clear()
    inner.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    same(step(net, rows(32)), expected, FLOAT32)
    assert seen == [16, 16]


class LowRank(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def test_another_class_inside_is_seen_before_and_after():
    for late in (False, True):
        net = network().train()
        if late:
            assert not accelerate(net).kept
        layer = net.tabnet.encoder.feat_transformers[0].specifics.glu_layers[1]
        layer.fc.__class__ = LowRank
        theirs = copy.deepcopy(net)
        restore(theirs)
        if not late:
            report = accelerate(net)
            assert "fc: it is a LowRank, expected a Linear" in {kept.reason for kept in report.kept}
        # `fc` is read directly by the fused layer: with another forward the layer must call it.
        same(step(net, rows()), step(theirs, rows()), FLOAT32)


def test_norms_frozen_by_themselves():
    theirs = network().train()
    theirs(rows())
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
    ours = copy.deepcopy(theirs)
    accelerate(ours)
    same(step(ours, rows()), step(theirs, rows()), FLOAT32)
    same(ours.state_dict(), theirs.state_dict(), FLOAT32)


class Loud(tab_network.GBN):
    pass


class Own(tab_network.GBN):
    def forward(self, x):
        return super().forward(x) + 1


def test_subclasses_and_odd_norms():
    assert accelerate(Loud(4))
    report = accelerate(Own(4))
    assert report.kept[0].reason.endswith("Own has a forward of its own")
    patched = tab_network.GBN(4)
    patched.forward = lambda x: x
    assert "its forward was replaced" in accelerate(patched).kept[0].reason
    cumulative = tab_network.GBN(4)
    cumulative.bn.momentum = None
    assert "momentum=None" in accelerate(cumulative).kept[0].reason
    bare = tab_network.GBN(4)
    bare.bn = nn.BatchNorm1d(4, track_running_stats=False)
    assert "no running statistics" in accelerate(bare).kept[0].reason


def test_a_wrong_kernel_is_refused(monkeypatch):
    monkeypatch.setattr(_sparsemax.Sparsemax, "fast", lambda self, x: torch.softmax(x, self.dim))
    net, x = network().eval(), rows()
    before = net(x)[0]
    report = accelerate(net)
    reasons = {kept.name: kept.reason for kept in report.kept}
    assert "it differs from the original: output 0:" in reasons["tabnet.encoder.att_transformers.0.selector"]
    assert "selector: it is a Sparsemax that was not swapped" in reasons["tabnet.encoder.att_transformers.0"]
    assert "tabnet.encoder" in reasons
    torch.testing.assert_close(net(x)[0], before, rtol=1e-4, atol=1e-5)
    assert accelerate(entmax.Sparsemax(), verify=False).swapped[0].error is None


@pytest.mark.parametrize(("draws", "swapped"), [(1, True), (99, False)], ids=["on one draw of inputs", "always"])
def test_a_kernel_that_loses_precision_is_refused(monkeypatch, draws, swapped):
    right, seen = _sparsemax.Sparsemax.fast, []

    def imprecise(self, x):
        if x.dtype == torch.float64:
            return right(self, x)
        if not any(torch.equal(x, other) for other in seen):
            seen.append(x.detach().clone())
        return right(self, x) + (1e-3 if len(seen) <= draws else 0)

    monkeypatch.setattr(_sparsemax.Sparsemax, "fast", imprecise)
    report = accelerate(entmax.Sparsemax())
    assert bool(report.swapped) is swapped
    if not swapped:
        assert "it differs from the original: output 0:" in report.kept[0].reason


def test_a_wrong_gradient_buffer_or_failure_is_refused(monkeypatch):
    monkeypatch.setattr(_pytorch_tabnet.GBN, "count_batches", lambda self, rows: None)
    assert "buffer bn.num_batches_tracked" in accelerate(tab_network.GBN(4)).kept[0].reason
    monkeypatch.undo()
    monkeypatch.setattr(_sparsemax.Sparsemax, "fast", lambda self, x: alphakernels.ops.sparsemax(x.detach(), self.dim) + 0 * x)
    assert "gradient of input 0" in accelerate(entmax.Sparsemax()).kept[0].reason

    def broken(self, x):
        raise RuntimeError("no kernel today")

    monkeypatch.setattr(_sparsemax.Sparsemax, "fast", broken)
    module = entmax.Sparsemax()
    assert accelerate(module).kept[0].reason == "it fails where the original runs: no kernel today"
    assert type(module) is entmax.Sparsemax


def test_entmax_masks_are_kept_with_the_reason():
    net = network(mask_type="entmax")
    report = accelerate(net)
    reasons = {kept.name: kept.reason for kept in report.kept}
    assert reasons["tabnet.encoder.att_transformers.0"] == "selector: it is a Entmax15 that was not swapped"
    assert "tabnet.encoder.initial_splitter.shared" in {s.name for s in report.swapped}


# entmax itself fails with k and a dimension of -2 or -3.
@pytest.mark.parametrize(("dim", "k"), [(d, None) for d in (0, 1, 2, -1, -2, -3)] + [(d, 3) for d in (0, 1, 2, -1)])
def test_entmax_sparsemax(dim, k):
    theirs = entmax.Sparsemax(dim=dim, k=k)
    ours = copy.deepcopy(theirs)
    assert accelerate(ours), accelerate(ours)
    x = torch.randn(5, 6, 7, dtype=torch.float64)
    assert_close("mask", ours(X=x), theirs(x))


def test_the_report_reads_well():
    net = network()
    text = str(accelerate(net))
    assert "x pytorch_tabnet.tab_network.GBN (verified, error at most " in text
    assert "kept     1 x torch.nn.modules.linear.Linear: no kernel here" in text
    assert "not verified" in str(accelerate(network(), verify=False))
    assert str(accelerate(nn.ReLU())) == "nothing to swap: the model has no module with weights"
    with pytest.raises(TypeError, match="accelerate: model must be a torch.nn.Module, got dict"):
        accelerate({})


@pytest.mark.parametrize("count", range(1, 60))
@pytest.mark.parametrize("size", [1, 2, 7, 16])
def test_virtual_batches_are_cut_at_the_same_places(count, size):
    cut = _pytorch_tabnet.virtual_batches(count, size)
    expected = [len(c) for c in torch.zeros(count).chunk(-(-count // size))]
    if cut is not None:
        assert cut[1] == len(expected)
        from alphakernels.ops.ghost_batch_norm.reference import chunk_sizes

        assert chunk_sizes(count, cut[0]) == expected
    elif count % size == 0 and size > 1:
        pytest.fail("a whole number of virtual batches must be cut by the kernel")


def test_compiles_without_a_break():
    net = network().eval()
    accelerate(net)
    x = rows()
    expected = net(x)[0]
    compiled = torch.compile(net.tabnet.encoder.att_transformers[0], backend="eager", fullgraph=True)
    prior = torch.ones(len(x), FEATURES)
    torch.testing.assert_close(compiled(prior, x[:, :4]), net.tabnet.encoder.att_transformers[0](prior, x[:, :4]), rtol=1e-6, atol=1e-6)
    assert torch.equal(net(x)[0], expected)
