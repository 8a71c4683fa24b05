"""The networks: names, initial weights, numbers against a plain composition, and what torch does with a module."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from entmax import sparsemax
from torch import nn

import alphakernels as ak
from alphakernels.models import TabNet, TabNetDecoder, TabNetFinetune
from alphakernels.ops.ghost_batch_norm.reference import chunk_sizes
from alphakernels.testing import Tolerance, assert_close

D = 7
SMALL = dict(inp_dim=D, out_dim=4, n_d=3, n_a=2, n_shared=2, n_ind=2, n_steps=3, relax=1.3, vbs=10)
LOOSE = Tolerance(1e-8, 1e-8)  # dozens of float64 norms in a row, neither side the exact one


def small(seed=0, **changes):
    torch.manual_seed(seed)
    return TabNet(**SMALL | changes)


def batch(rows=33, seed=0, dtype=torch.float32):
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(seed)).to(dtype), torch.ones(
        rows, D, dtype=dtype
    )


def lively(module, seed=0):
    """The module with norms whose weights and statistics are other than one and zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, t in module.state_dict().items():
        if name.endswith(("bn.weight", "running_var")):
            t.copy_(0.5 + torch.rand(t.shape, generator=generator))
        elif name.endswith(("bn.bias", "running_mean")):
            t.copy_(0.3 * torch.randn(t.shape, generator=generator))
    return module


def _norm_names(prefix):
    return [f"{prefix}.bn.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]


def _glu_names(prefix):
    return [f"{prefix}.fc.weight", f"{prefix}.fc.bias", *_norm_names(f"{prefix}.bn")]


def _transformer_names(prefix):
    return [*_glu_names(f"{prefix}.shared.0"), *_glu_names(f"{prefix}.shared.1"), *_glu_names(f"{prefix}.independ.0")]


def test_state_dict_names_and_order_are_qlibs():
    shared = ["shared.0.weight", "shared.0.bias", "shared.1.weight", "shared.1.bias"]
    # With shared blocks Qlib's loop over range(first=False, n_ind) makes n_ind own blocks.
    own = _glu_names("first_step.independ.1")
    expected = shared + _transformer_names("first_step") + own
    for i in range(2):
        expected += [f"steps.{i}.atten_tran.fc.weight", f"steps.{i}.atten_tran.fc.bias"]
        expected += _norm_names(f"steps.{i}.atten_tran.bn")
        expected += _transformer_names(f"steps.{i}.fea_tran") + _glu_names(f"steps.{i}.fea_tran.independ.1")
    expected += ["fc.weight", "fc.bias", *(n.removeprefix("x.") for n in _norm_names("x"))]
    state = small().state_dict()
    assert list(state) == expected
    shapes = {
        "shared.0.weight": (10, D),
        "shared.1.weight": (10, 5),
        "first_step.shared.0.fc.weight": (10, D),
        "first_step.independ.1.fc.weight": (10, 5),
        "steps.1.atten_tran.fc.weight": (D, 2),
        "steps.1.atten_tran.bn.bn.running_var": (D,),
        "steps.0.fea_tran.shared.1.bn.bn.weight": (10,),
        "fc.weight": (4, 3),
        "bn.weight": (D,),
        "bn.num_batches_tracked": (),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_decoder_and_finetune_names():
    decoder = TabNetDecoder(4, D, 1, 1, 10, 2).state_dict()
    expected = ["shared.0.weight", "shared.0.bias"]
    for i in range(2):
        expected += _glu_names(f"steps.{i}.fea_tran.shared.0") + _glu_names(f"steps.{i}.fea_tran.independ.0")
        expected += [f"steps.{i}.fc.weight", f"steps.{i}.fc.bias"]
    assert list(decoder) == expected
    encoder = small()
    assert list(TabNetFinetune(4, 1, encoder).state_dict()) == [f"model.{n}" for n in encoder.state_dict()] + [
        "fc.weight",
        "fc.bias",
    ]


def test_initial_weights_are_drawn_in_qlibs_order():
    """The same seed, the same linear layers made one after the other: bitwise the same weights."""
    d = SMALL["n_d"] + SMALL["n_a"]
    names = ["shared.0", "shared.1", "first_step.independ.0.fc", "first_step.independ.1.fc"]
    sizes = [(D, 2 * d), (d, 2 * d), (d, 2 * d), (d, 2 * d)]
    for i in range(2):
        names += [f"steps.{i}.atten_tran.fc", f"steps.{i}.fea_tran.independ.0.fc", f"steps.{i}.fea_tran.independ.1.fc"]
        sizes += [(SMALL["n_a"], D), (d, 2 * d), (d, 2 * d)]
    names, sizes = names + ["fc"], sizes + [(SMALL["n_d"], SMALL["out_dim"])]
    state = small(seed=5).state_dict()
    torch.manual_seed(5)
    for name, size in zip(names, sizes, strict=True):
        layer = nn.Linear(*size)
        assert torch.equal(state[f"{name}.weight"], layer.weight), name
        assert torch.equal(state[f"{name}.bias"], layer.bias), name


class Plain:
    """TabNet written out in torch calls and entmax's sparsemax, on the parameters of a `TabNet`."""

    def __init__(self, net):
        self.net = net

    def norm(self, gbn, x):
        pieces = x.split(chunk_sizes(x.shape[0], gbn.vbs)) if gbn.training else [x]
        return torch.cat([gbn.bn(piece) for piece in pieces])

    def glu(self, block, x):
        v = self.norm(block.bn, block.fc(x))
        return v[:, : block.od] * torch.sigmoid(v[:, block.od :])

    def transformer(self, block, x):
        own = list(block.independ)
        if block.shared:
            x, own = self.glu(block.shared[0], x), list(block.shared[1:]) + own
        for glu in own:
            x = (x + self.glu(glu, x)) * math.sqrt(0.5)
        return x

    def __call__(self, x, priors):
        net = self.net
        x = net.bn(x)
        a = self.transformer(net.first_step, x)[:, net.n_d :]
        out, loss = 0, 0
        for step in net.steps:
            mask = sparsemax(self.norm(step.atten_tran.bn, step.atten_tran.fc(a)) * priors, dim=-1)
            if net.variant == "paper":
                priors = priors * (step.atten_tran.r - mask)
            loss = loss + (-mask * torch.log(mask + 1e-10)).mean()
            transformed = self.transformer(step.fea_tran, x * mask)
            out, a = out + torch.relu(transformed[:, : net.n_d]), transformed[:, net.n_d :]
        return net.fc(out), loss


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("variant", ["qlib", "paper"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rows", [33, 31, 10])
def test_equals_a_plain_composition(rows, training, variant, backend):
    net = lively(small(variant=variant).double()).train(training)
    twin = copy.deepcopy(net)
    x, priors = batch(rows, dtype=torch.float64)
    grad = torch.randn(rows, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = []
    with ak.use_backend(backend):
        for m, forward in ((net, net), (twin, Plain(twin))):
            leaf = x.clone().requires_grad_()
            vec, loss = forward(leaf, priors)
            ((vec * grad).sum() + 3 * loss).backward()
            found = {"vec": vec, "loss": loss, "x": leaf.grad}
            found |= {f"gradient of {n}": p.grad for n, p in m.named_parameters()}
            results.append(found | dict(m.named_buffers()))
    for name, expected in results[1].items():
        in_front_of_a_norm = name.endswith(".bias") and ("fc" in name or "shared" in name) and ".bn." not in name
        if training and in_front_of_a_norm and name != "gradient of fc.bias":
            assert (results[0][name] == 0).all() and expected.abs().max() < 1e-9
        elif expected is None:
            assert results[0][name] is None
        else:
            assert_close(name, results[0][name], expected, tolerance=LOOSE)


@pytest.mark.parametrize("n_shared, n_ind, n_steps", [(0, 2, 2), (1, 1, 2), (3, 1, 4), (2, 0, 2), (2, 2, 1)])
def test_other_numbers_of_blocks_and_steps(n_shared, n_ind, n_steps):
    net = small(n_shared=n_shared, n_ind=n_ind, n_steps=n_steps)
    vec, loss = net(*batch())
    assert vec.shape == (33, 4) and loss.shape == ()
    (vec.sum() + loss).backward()
    assert vec.isfinite().all() and loss.isfinite()


def test_variant_paper_lets_features_go():
    torch.manual_seed(0)
    x, priors = batch(200)
    once = TabNet(**SMALL | {"relax": 1.0, "variant": "paper", "n_steps": 4}).eval()
    masks, _ = once.masks(x, priors)
    left = torch.ones(200, D)
    for mask in masks:  # a feature used up has no prior left, and gets its share of the mask by its logit no more
        assert_close("rows", mask.sum(1), torch.ones(200))
        left = left * (1 - mask)
    assert (left >= 0).all()
    qlib = TabNet(**SMALL | {"relax": 1.0, "n_steps": 4}).eval()
    qlib.load_state_dict(once.state_dict())
    assert not torch.equal(qlib(x, priors)[0], once(x, priors)[0])
    assert torch.equal(qlib.masks(x, priors)[0][0], masks[0])  # the first step's prior is the caller's


def test_masks_and_their_weights():
    net = lively(small()).eval()
    x, priors = batch()
    masks, weights = net.masks(x, priors)
    assert len(masks) == len(weights) == SMALL["n_steps"] - 1
    for mask, weight in zip(masks, weights, strict=True):
        assert mask.shape == (33, D) and weight.shape == (33,)
        assert_close("rows", mask.sum(1), torch.ones(33))
        assert (weight >= 0).all()


def test_decoder_sums_its_steps():
    torch.manual_seed(0)
    decoder = lively(TabNetDecoder(4, D, 1, 1, 10, 3).double())
    twin, plain = copy.deepcopy(decoder), Plain(None)
    vec = torch.randn(33, 4, dtype=torch.float64)
    expected = sum(step.fc(plain.transformer(step.fea_tran, vec)) for step in twin.steps)
    assert_close("reconstruction", decoder(vec), expected, tolerance=LOOSE)


@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize("output_dim", [1, 3])
def test_finetune_shapes(rows, output_dim):
    model = TabNetFinetune(4, output_dim, small()).eval()
    out = model(*batch(rows))
    assert out.shape == ((rows,) if output_dim == 1 else (rows, output_dim))


def test_no_rows():
    model = TabNetFinetune(4, 1, small()).eval()
    assert model(*batch(0)).shape == (0,)
    vec, loss = small().eval()(*batch(0))
    assert vec.shape == (0, 4) and loss.item() == 0


def test_evaluation_of_a_row_does_not_depend_on_the_batch():
    net = lively(small()).eval()
    x, priors = batch()
    alone = torch.cat([net(x[i : i + 1], priors[i : i + 1])[0] for i in range(33)])
    assert_close(
        "vec", net(x, priors)[0], alone, tolerance=Tolerance(1e-4, 1e-5)
    )  # the matrix product sums differently


def test_bad_inputs():
    net = small()
    x, priors = batch()
    with pytest.raises(ValueError, match=r"TabNet: x must be of shape \[B, 7\], got \[33, 6\]"):
        net(x[:, :6], priors)
    with pytest.raises(ValueError, match=r"TabNet: priors must be of shape \[B, 7\], got \[33, 1\]"):
        net(x, priors[:, :1])
    with pytest.raises(ValueError, match=r"TabNet: x must be of shape \[B, 7\], got \[1, 33, 7\]"):
        net(x[None], priors)
    with pytest.raises(ValueError, match="must be of shape"):
        net(x, priors[:5])
    with pytest.raises(ValueError, match="variant must be one of qlib, paper, got 'papre'"):
        small(variant="papre")
    with pytest.raises(ValueError, match="vbs .* must be at least 1, got 0"):
        small(vbs=0)
    with pytest.raises(
        ValueError, match="x must be of more than one row in every virtual batch when training, got 1 rows"
    ):
        net(x[:1], priors[:1])


def test_inputs_are_not_written_to():
    x, priors = batch()
    before = x.clone(), priors.clone()
    small(variant="paper")(x, priors)
    assert torch.equal(x, before[0]) and torch.equal(priors, before[1])


def test_round_trips():
    net = lively(small()).eval()
    x, priors = batch()
    expected = net(x, priors)[0]
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    loaded = small(seed=9).eval()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), loaded):
        assert torch.equal(again(x, priors)[0], expected)


def test_a_checkpoint_of_another_width_is_refused():
    with pytest.raises(RuntimeError, match="size mismatch for shared.0.weight"):
        small().load_state_dict(small(inp_dim=8).state_dict())


@pytest.mark.parametrize("training", [True, False])
def test_autocast(training):
    net = lively(small()).train(training)
    x, priors = batch(rows=40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vec, loss = net(x, priors)
    assert loss.dtype == torch.float32
    (vec.float().sum() + loss).backward()
    assert {p.grad.dtype for p in net.parameters() if p.grad is not None} == {torch.float32}
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
    exact = copy.deepcopy(net)(x, priors)[1]
    assert_close("loss", loss, exact, tolerance=Tolerance(0.2, 0))  # bfloat16 products move the supports


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compile_in_one_graph(training):
    torch._dynamo.reset()
    net = lively(small()).train(training)
    twin = copy.deepcopy(net)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for rows in (33, 20):  # another number of virtual batches too
        x, priors = batch(rows)
        results = []
        for m, forward in ((net, net), (twin, compiled)):
            m.zero_grad()
            vec, loss = forward(x, priors)
            (vec.square().sum() + loss).backward()
            found = {"vec": vec, "loss": loss} | {n: p.grad for n, p in m.named_parameters() if p.grad is not None}
            results.append(found | dict(m.named_buffers()))
        for name, expected in results[0].items():
            assert_close(name, results[1][name], expected)
    torch._dynamo.reset()


def test_same_bits_with_any_number_of_threads(threads):
    results = []
    for number in (1, 2, 4, 1):
        threads(number)
        torch.manual_seed(3)
        net = TabNet(inp_dim=158, out_dim=16, n_d=16, n_a=16, n_steps=3, vbs=512)
        x = torch.randn(1024, 158)
        vec, loss = net(x, torch.ones_like(x))
        (vec.square().mean() + loss).backward()
        results.append([vec, loss, *(p.grad for p in net.parameters()), *net.buffers()])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True) if a is not None)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_export(backend):
    model = TabNetFinetune(4, 1, lively(small())).eval()
    with ak.use_backend(backend):
        rows = torch.export.Dim("rows", min=2, max=5000)
        program = torch.export.export(model, batch(), dynamic_shapes=({0: rows}, {0: rows}))
    x, priors = batch(50, seed=1)
    assert_close("exported", program.module()(x, priors), model(x, priors))
    targets = {str(node.target) for node in program.graph.nodes}
    assert any("alphakernels" in t for t in targets) == (
        ak.explain(ak.ops.sparsemax, x).kernel == "cpp" and backend == "auto"
    )


def test_onnx(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = TabNetFinetune(4, 1, lively(small())).eval()
    with ak.use_backend("reference"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        rows = torch.export.Dim("rows", min=2, max=5000)
        program = torch.onnx.export(
            model,
            batch(),
            dynamo=True,
            dynamic_shapes=({0: rows}, {0: rows}),
            input_names=["x", "priors"],
            verbose=False,
        )
    program.save(tmp_path / "model.onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    x, priors = batch(50, seed=1)
    (out,) = session.run(None, {"x": x.numpy(), "priors": priors.numpy()})
    assert_close("onnxruntime", torch.from_numpy(np.asarray(out)), model(x, priors), tolerance=Tolerance(1e-4, 1e-5))
