"""Our TabNet networks against Qlib's: initial weights, outputs, gradients, and state dicts exchanged both ways."""

from __future__ import annotations

import pytest
import torch

from alphakernels import models
from alphakernels.testing import Tolerance, assert_close, assert_no_worse_than_eager

qlib = pytest.importorskip("qlib.contrib.model.pytorch_tabnet")

ENCODERS = {
    "qlib's defaults": {},
    "alpha158": dict(inp_dim=158, out_dim=64, relax=1.3, vbs=2048),
    "small": dict(inp_dim=11, out_dim=3, n_d=5, n_a=7, n_shared=1, n_ind=3, n_steps=3, relax=1.5, vbs=32),
    "one step": dict(inp_dim=9, out_dim=2, n_d=4, n_a=4, n_steps=1, vbs=16),
    "only shared": dict(inp_dim=9, out_dim=2, n_d=4, n_a=3, n_shared=3, n_ind=0, n_steps=2, vbs=16),
    "nothing shared": dict(inp_dim=10, out_dim=2, n_d=4, n_a=6, n_shared=0, n_ind=2, n_steps=4, vbs=16),
}
DECODERS = {
    "alpha158": dict(inp_dim=64, out_dim=158, n_shared=2, n_ind=2, vbs=2048, n_steps=5),
    "small": dict(inp_dim=5, out_dim=11, n_shared=1, n_ind=1, vbs=16, n_steps=2),
    "nothing shared": dict(inp_dim=8, out_dim=8, n_shared=0, n_ind=2, vbs=16, n_steps=3),
}
# Two float64 chains through some twenty norms, neither of them the exact one.
DEEP_FLOAT64 = Tolerance(0, 1e-9)
RUNNABLE = [name for name, sizes in ENCODERS.items() if sizes.get("inp_dim", 6) < 100]


def pair(theirs, ours, seed=3, **sizes):
    """Qlib's network and ours, each made from the same seed."""
    networks = []
    for make in (theirs, ours):
        torch.manual_seed(seed)
        networks.append(make(**sizes))
    return networks


def encoders(name, seed=3):
    return pair(qlib.TabNet, models.TabNet, seed, **ENCODERS[name])


def finetuned(network, head, outputs=1, seed=4):
    torch.manual_seed(seed)
    return head(network.fc.out_features, outputs, network)


def assert_same_state(theirs, ours):
    expected, got = theirs.state_dict(), ours.state_dict()
    assert list(got) == list(expected)
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name


def inputs(name, rows=70, dtype=None, seed=0):
    """x, priors as in pretraining (zeros and ones)."""
    generator = torch.Generator().manual_seed(seed)
    features = ENCODERS[name].get("inp_dim", 6)
    x = torch.randn(rows, features, generator=generator, dtype=torch.float64)
    priors = (torch.rand(rows, features, generator=generator, dtype=torch.float64) < 0.7).double()
    priors[:, 0] = 1  # no row is hidden as a whole
    return x.to(dtype or torch.get_default_dtype()), priors.to(dtype or torch.get_default_dtype())


def biases_before_a_norm(network):
    """The names (all of them, where a layer is shared) of the biases that a norm cancels in training."""
    blocks = [module for module in network.modules() if isinstance(module, (qlib.GLU, qlib.AttentionTransformer))]
    cancelled = {id(block.fc.bias) for block in blocks}
    return {name for name, p in network.named_parameters(remove_duplicate=False) if id(p) in cancelled}


def outputs_and_gradients(network, *tensors):
    """All outputs, and the gradients of a fixed random combination of them by parameter name."""
    network.zero_grad()
    outputs = network(*tensors)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    outputs = [output for output in outputs if torch.is_tensor(output)]  # of no step, Qlib's sparsity loss is the int 0
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in outputs]
    sum((t * w).sum() for t, w in zip(outputs, weights, strict=True)).backward()
    # By all of its names, since a shared layer has several.
    gradients = {name: p.grad for name, p in network.named_parameters(remove_duplicate=False)}
    return [t.detach() for t in outputs], gradients


def assert_same_gradients(theirs, ours, noise, tolerance):
    assert list(ours) == list(theirs)
    for name, expected in theirs.items():
        if expected is None:
            assert ours[name] is None or not ours[name].any(), name
        elif name not in noise:
            assert_close(f"gradient of {name}", ours[name], expected, tolerance=tolerance)


@pytest.mark.parametrize("seed", [0, 993])
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_start_bitwise_equal(name, seed):
    theirs, ours = encoders(name, seed)
    assert_same_state(theirs, ours)
    for outputs in (1, 3):
        assert_same_state(finetuned(theirs, qlib.FinetuneModel, outputs), finetuned(ours, models.TabNetFinetune, outputs))


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_start_bitwise_equal(name):
    assert_same_state(*pair(qlib.TabNet_Decoder, models.TabNetDecoder, **DECODERS[name]))


def test_the_random_stream_goes_on_from_the_same_place():
    after = []
    for encoder, decoder in ((qlib.TabNet, qlib.TabNet_Decoder), (models.TabNet, models.TabNetDecoder)):
        torch.manual_seed(1)
        encoder(**ENCODERS["small"])
        decoder(**DECODERS["small"])
        after.append(torch.rand(4))
    assert torch.equal(*after)


@pytest.mark.parametrize("name", RUNNABLE)
def test_encoder_in_float64(name, in_float64, lively):
    with in_float64():
        theirs, ours = encoders(name)
        lively(theirs, ours)
        tensors = inputs(name)
        expected, expected_gradients = outputs_and_gradients(theirs, *tensors)
        got, gradients = outputs_and_gradients(ours, *tensors)
    for what, one, other in zip(("vec", "sparse_loss"), got, expected, strict=False):
        assert one.dtype == torch.float64
        assert_close(what, one, other, tolerance=DEEP_FLOAT64)
    noise = biases_before_a_norm(theirs)
    assert_same_gradients(expected_gradients, gradients, noise, DEEP_FLOAT64)
    for bias in noise:
        assert gradients[bias] is None or not gradients[bias].any(), f"{bias}: a norm cancels it"
        if expected_gradients[bias] is not None:
            weight = expected_gradients[bias.removesuffix("bias") + "weight"]
            assert expected_gradients[bias].norm() <= 1e-9 * weight.norm(), f"{bias}: Qlib's is rounding noise"
    for key, tensor in theirs.state_dict().items():
        assert_close(key, ours.state_dict()[key], tensor, tolerance=DEEP_FLOAT64)


@pytest.mark.parametrize("name", RUNNABLE)
def test_encoder_in_evaluation(name, in_float64, lively):
    with in_float64():
        theirs, ours = encoders(name)
        lively(theirs, ours)
        tensors = inputs(name)
        expected, expected_gradients = outputs_and_gradients(theirs.eval(), *tensors)
        got, gradients = outputs_and_gradients(ours.eval(), *tensors)
    assert_close("vec", got[0], expected[0], tolerance=DEEP_FLOAT64)
    # In evaluation no norm cancels the biases.
    assert_same_gradients(expected_gradients, gradients, set(), DEEP_FLOAT64)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", DECODERS)
def test_decoder_in_float64(name, training, in_float64, lively):
    sizes = {**DECODERS[name], "vbs": 16}
    with in_float64():
        theirs, ours = pair(qlib.TabNet_Decoder, models.TabNetDecoder, **sizes)
        lively(theirs, ours)
        x = torch.randn(70, sizes["inp_dim"])
        expected, expected_gradients = outputs_and_gradients(theirs.train(training), x)
        got, gradients = outputs_and_gradients(ours.train(training), x)
    assert_close("reconstruction", got[0], expected[0], tolerance=DEEP_FLOAT64)
    noise = biases_before_a_norm(theirs) if training else set()
    assert_same_gradients(expected_gradients, gradients, noise, DEEP_FLOAT64)


@pytest.mark.parametrize("training", [True, False])
def test_float32_is_no_further_from_float64_than_qlibs_own(training, lively):
    name = "small"
    theirs, ours = encoders(name)
    lively(theirs, ours)
    torch.set_default_dtype(torch.float64)
    try:
        exact = qlib.TabNet(**ENCODERS[name])
        exact.load_state_dict(theirs.state_dict())
        x, priors = inputs(name, rows=640, dtype=torch.float32)
        with torch.no_grad():
            vec, entropy = exact.train(training)(x.double(), priors.double())
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        their_vec, their_entropy = theirs.train(training)(x, priors)
        our_vec, our_entropy = ours.train(training)(x, priors)
    assert our_vec.dtype == torch.float32
    assert_no_worse_than_eager("vec", our_vec, their_vec, vec)
    assert our_entropy.item() == pytest.approx(entropy.item(), rel=1e-5)
    assert their_entropy.item() == pytest.approx(entropy.item(), rel=1e-5)


@pytest.mark.parametrize("outputs", [1, 3])
def test_state_dicts_go_both_ways(tmp_path, lively, outputs):
    for source, target, seeds in ((0, 1, (3, 30)), (1, 0, (30, 3))):
        networks = [
            finetuned(encoders("small", seed)[which], (qlib.FinetuneModel, models.TabNetFinetune)[which], outputs, seed)
            for which, seed in enumerate(seeds)
        ]
        lively(networks[source], networks[source])
        torch.save(networks[source].state_dict(), tmp_path / "state.pt")
        networks[target].load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        with torch.no_grad():
            theirs, ours = (network.eval()(*inputs("small")) for network in networks)
        assert ours.shape == theirs.shape
        assert_close("prediction", ours, theirs, tolerance=Tolerance(1e-5, 1e-5))


def test_a_single_row_keeps_its_axis_where_qlib_loses_it():
    theirs, ours = (
        finetuned(network, head).eval()
        for network, head in zip(encoders("small"), (qlib.FinetuneModel, models.TabNetFinetune), strict=True)
    )
    x, priors = inputs("small", rows=1)
    with torch.no_grad():
        assert theirs(x, priors).shape == ()
        assert ours(x, priors).shape == (1,)
        assert_close("prediction", ours(x, priors)[0], theirs(x, priors), tolerance=Tolerance(1e-5, 1e-5))
