"""What is local_encoder_layer's own, beside the contract: its dropout, its masks, its memory, and the sizes at which its kernels cut."""

from __future__ import annotations

import os

import pytest
import torch

import alphakernels as ak
from alphakernels import ops
from alphakernels.ops import _library, _random
from alphakernels.ops.local_encoder_layer import op as module
from alphakernels.ops.local_encoder_layer import reference
from alphakernels.testing import Tolerance, assert_close, outputs_and_gradients
from alphakernels.testing.cases.local_encoder_layer import _shapes

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def draw(batch, steps, d, f, *, conv=True, seed=0, dtype=torch.float32):
    """The inputs by name, drawn in float32; no hidden value is near the ReLU's kink, where rounding would decide."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {"x": torch.randn(batch, steps, d, generator=generator)}
    for name, shape in _shapes(d, f, conv).items():
        fan_in = torch.Size(shape[1:]).numel() if len(shape) > 1 else 16
        drawn[name] = torch.randn(shape, generator=generator) / fan_in**0.5 + (name in ("norm1_weight", "norm2_weight"))
    drawn["linear1_bias"] += 6.0 * (-1.0) ** torch.arange(f)
    return {name: t.to(dtype) for name, t in drawn.items()}


def run(inputs, **options):
    """Outputs and gradients of all inputs, as one dict."""

    def call(i):
        found = ops.local_encoder_layer(**i, **options)
        return dict(zip(("y", "u"), found, strict=True)) if isinstance(found, tuple) else {"y": found}

    outputs, gradients = outputs_and_gradients(call, inputs, tuple(inputs))
    return outputs | {f"gradient of {name}": t for name, t in gradients.items()}


def exact(inputs, **options):
    """The same by the reference in float64."""
    with ak.use_backend("reference"):
        return run({name: t.double() for name, t in inputs.items()}, **options)


def assert_all_close(actual, expected, dtype=torch.float32, tolerance=None):
    for name in expected:
        assert_close(name, actual[name], expected[name], dtype=dtype, tolerance=tolerance)


def assert_same_bits(actual, expected):
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name


@pytest.fixture(params=["interpreted" if INTERPRETED else "cpp"])
def backend(request):
    """The C++ kernel; in a process that interprets, Triton's (`test_contract_interpreted.py` starts one)."""
    if not INTERPRETED and _library.compiled().problem:
        pytest.skip(_library.compiled().problem)
    with ak.use_backend("triton" if INTERPRETED else "cpp"):
        yield request.param


# Dropout


def test_dropout_follows_manual_seed_and_not_the_number_of_threads(threads):
    inputs = draw(37, 20, 16, 64)
    draws = []
    for number, seed in ((1, 3), (2, 3), (3, 3), (2, 4)):
        threads(number)
        torch.manual_seed(seed)
        draws.append(run(inputs, heads=2, dropout=0.5))
    assert_same_bits(draws[1], draws[0])
    assert_same_bits(draws[2], draws[0])
    assert not torch.equal(draws[3]["y"], draws[0]["y"])


@pytest.mark.parametrize("rows", [1, 7])
def test_a_sample_draws_the_same_masks_whatever_follows_it(rows, backend):
    inputs = draw(9, 13, 12, 37)
    few = inputs | {"x": inputs["x"][:rows]}
    torch.manual_seed(5)
    y = ops.local_encoder_layer(**inputs, heads=3, dropout=0.4)
    torch.manual_seed(5)
    assert_close("y", ops.local_encoder_layer(**few, heads=3, dropout=0.4), y[:rows])


def test_evaluation_draws_nothing():
    state = torch.get_rng_state()
    ops.local_encoder_layer(**draw(2, 3, 4, 5), heads=1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("p", [0.1, 0.7])
def test_dropout_keeps_the_right_share_and_scales_it(p):
    """Of each of the four places: the factors themselves, then what the FFN's last dropout leaves of a constant."""
    seed = torch.tensor(2**61 + 12345)
    for stream in range(4):
        factors = _random.dropout_factors(seed, stream, (501, 399), p, torch.zeros(()).double())
        kept = (factors != 0).double()
        assert torch.unique(factors).numel() == 2
        assert abs(kept.mean() - (1 - p)) < 5 * (p * (1 - p) / kept.numel()) ** 0.5
        assert (kept.mean(0) - (1 - p)).abs().max() < 6 * (p * (1 - p) / 501) ** 0.5  # every column
        centred = kept - kept.mean()
        for one, other in ((centred[:, 1:], centred[:, :-1]), (centred[1:], centred[:-1])):  # neighbours have nothing in common
            assert abs((one * other).mean()) / (p * (1 - p)) < 6 / kept.numel() ** 0.5
    streams = torch.stack([_random.dropout_factors(seed, s, (101, 99), p, torch.zeros(())).flatten() for s in range(4)])
    correlation = torch.corrcoef(streams)
    assert (correlation - torch.eye(4)).abs().max() < 6 / 9999**0.5


@pytest.mark.parametrize("place, stream", [("attention's output", 1), ("ffn's output", 3)])
def test_each_place_has_its_own_stream(place, stream, backend):
    """With all but one place's input at zero, what the norm takes in is that place's factors."""
    p, batch, steps, d = 0.5, 3, 5, 8
    inputs = {name: torch.zeros(shape) for name, shape in _shapes(d, 6, False).items()}
    inputs |= {"x": torch.zeros(batch, steps, d), "norm1_weight": torch.ones(d), "norm2_weight": torch.ones(d)}
    inputs["out_proj_bias" if stream == 1 else "linear2_bias"] += 1.0
    torch.manual_seed(11)
    seed = _random.draw_seed()
    torch.manual_seed(11)
    y = ops.local_encoder_layer(**inputs, heads=2, dropout=p)
    z = _random.dropout_factors(seed, stream, (batch * steps, d), p, y.double())
    norm = torch.nn.functional.layer_norm
    expected = norm(norm(z, (d,)), (d,)) if stream == 1 else norm(z, (d,))
    assert_close(place, y, expected.view(y.shape), dtype=torch.float32)


def test_mean_over_masks_of_attention_is_attention_without(backend):
    """E[dropout(weights)] = weights: the output projection of many draws, against none."""
    if INTERPRETED:
        pytest.skip("a statistic of many rows: the C++ kernel's test")
    d, steps, draws = 8, 6, 4000
    inputs = draw(1, steps, d, 5, conv=False, dtype=torch.float64)
    x = inputs.pop("x").expand(draws, steps, d)
    weights = [inputs[name] for name in _shapes(d, 5, False)]
    kept = []
    for seed, p in ((torch.tensor(99), 0.3), (None, 0.0)):
        _, _, found = torch.ops.alphakernels.local_encoder_layer(x, weights, None, seed, 2, p, 1e-5, False, True)
        kept.append(found[0])  # the heads' outputs
    mean, exact_value = kept[0].mean(0), kept[1][0]
    spread = kept[0].std(0) / draws**0.5
    assert ((mean - exact_value).abs() < 6 * spread + 1e-12).all()
    assert (spread > 0).all()


# Masks


def test_causal_is_its_explicit_mask(backend):
    inputs = draw(3, 21, 12, 17)
    explicit = torch.full((21, 21), -torch.inf).triu(1)
    assert_same_bits(run(inputs, heads=2, is_causal=True), run(inputs, heads=2, mask=explicit))


def test_causal_sees_no_future(backend):
    inputs = draw(2, 30, 16, 33, conv=False)
    y = ops.local_encoder_layer(**inputs, heads=4, is_causal=True)
    changed = inputs | {"x": torch.cat([inputs["x"][:, :17], torch.randn(2, 13, 16)], 1)}
    later = ops.local_encoder_layer(**changed, heads=4, is_causal=True)
    assert_close("before", later[:, :17], y[:, :17])
    assert (later[:, 17:] - y[:, 17:]).abs().amax(2).min() > 1e-3


def test_a_constant_mask_is_none_and_a_diagonal_one_is_the_value_itself(backend):
    inputs = draw(2, 9, 8, 11, conv=False)
    y = ops.local_encoder_layer(**inputs, heads=2)
    assert_close("constant", ops.local_encoder_layer(**inputs, heads=2, mask=torch.full((9, 9), 3.0)), y)
    alone = torch.full((9, 9), -torch.inf).fill_diagonal_(0.0)
    one_by_one = ops.local_encoder_layer(**inputs | {"x": inputs["x"].reshape(18, 1, 8)}, heads=2)
    assert_close("diagonal", ops.local_encoder_layer(**inputs, heads=2, mask=alone), one_by_one.view(2, 9, 8))


@pytest.mark.parametrize("steps", [5, 70])
def test_a_step_that_attends_to_nothing_is_nan_and_spoils_no_other(steps, backend):
    """softmax of a row of -inf, as torch has it; and a row that is masked at first only, which an online softmax must survive."""
    inputs = draw(2, steps, 8, 11, conv=False)
    mask = torch.zeros(steps, steps)
    mask[3] = -torch.inf
    mask[4, : steps - 1] = -torch.inf
    y = ops.local_encoder_layer(**inputs, heads=2, mask=mask)
    expected = exact(inputs, heads=2, mask=mask.double())["y"]
    assert y[:, 3].isnan().all()
    assert_close("y", y, expected)


def test_extreme_scores(backend):
    inputs = draw(2, 40, 8, 11, conv=False)
    inputs["in_proj_weight"] *= 100.0
    y = ops.local_encoder_layer(**inputs, heads=1)
    assert y.isfinite().all()


# Sizes at which the kernels cut


@pytest.mark.parametrize("steps, heads, d", [(1, 2, 6), (16, 1, 5), (17, 5, 5), (64, 2, 6), (65, 2, 6), (129, 1, 8)])
def test_steps_around_the_tiles(steps, heads, d, backend):
    inputs = draw(2, steps, d, 9)
    options = dict(heads=heads, mask=torch.randn(steps, steps))
    assert_all_close(run(inputs, return_conv=True, **options), exact(inputs, return_conv=True, heads=heads, mask=options["mask"].double()))


def test_longest(backend):
    inputs = draw(1, 512, 4, 6)
    assert_all_close(run(inputs, heads=2, is_causal=True), exact(inputs, heads=2, is_causal=True))


@pytest.mark.parametrize("f", [1, 16, 31, 33, 64, 65])
def test_hidden_widths_around_the_tiles(f, backend):
    inputs = draw(3, 5, 7, f)
    torch.manual_seed(1)
    ours = run(inputs, heads=1, dropout=0.25)
    torch.manual_seed(1)
    assert_all_close(ours, exact(inputs, heads=1, dropout=0.25))


@pytest.mark.parametrize("d, heads", [(16, 16), (33, 1), (96, 8), (128, 1), (130, 2), (256, 2)])
def test_widths(d, heads, backend):
    inputs = draw(2, 6, d, 40)
    assert_all_close(run(inputs, heads=heads), exact(inputs, heads=heads))


@pytest.mark.parametrize("batch", [1, 25, 26, 51, 800])
def test_groups_and_parts_of_the_batch(batch):
    """T = 10: the C++ kernel takes 25 samples a group, and sums gradients by 16 parts of them; 800 samples are 32 groups. Rows are the
    same wherever the batch is cut."""
    inputs = draw(batch, 10, 4, 6)
    found = run(inputs, heads=2)
    assert_all_close(found, exact(inputs, heads=2))
    for row in {0, batch // 2, batch - 1}:
        alone = ops.local_encoder_layer(**inputs | {"x": inputs["x"][row : row + 1]}, heads=2)
        assert_close(f"row {row}", alone, found["y"][row : row + 1])


@pytest.mark.parametrize("shape", [(0, 5, 4), (3, 0, 4), (0, 0, 4)])
@pytest.mark.parametrize("memory", ["auto", "low"])
def test_nothing(shape, memory, backend):
    inputs = draw(*shape, 6)
    found = run(inputs, heads=2, memory=memory, return_conv=True)
    assert found["y"].shape == found["u"].shape == shape
    for name in inputs:
        gradient = found[f"gradient of {name}"]
        assert gradient.shape == inputs[name].shape and not gradient.any()


# What is kept, and what is asked for


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("conv", [False, True])
def test_low_memory_is_the_same_numbers(dropout, conv, backend):
    inputs = draw(5, 17, 12, 40, conv=conv)
    found = []
    for memory in ("auto", "low"):
        torch.manual_seed(2)
        found.append(run(inputs, heads=3, dropout=dropout, memory=memory))
    assert_same_bits(*found)


@pytest.mark.parametrize("conv", [False, True])
def test_what_is_kept_for_the_backward_pass(conv, backend):
    """Elements beside the parameters that autograd holds: x and four tensors of its size (three without a convolution), or x alone."""
    inputs = {name: t.requires_grad_() for name, t in draw(4, 6, 8, 1000, conv=conv).items()}
    parameters = {t.data_ptr() for name, t in inputs.items() if name != "x"}
    held = {}
    for memory in ("auto", "low"):
        saved = {}

        def pack(t, saved=saved):
            if t.data_ptr() not in parameters and t.numel():
                saved[t.data_ptr()] = max(saved.get(t.data_ptr(), 0), t.numel())
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = ops.local_encoder_layer(**inputs, heads=2, dropout=0.5, memory=memory)
        held[memory] = sum(saved.values()) - 1  # the seed
        del y
    size = 4 * 6 * 8
    assert held == {"auto": size * (5 if conv else 4), "low": size}


@pytest.mark.parametrize("memory", ["auto", "low"])
def test_gradients_that_are_not_asked_for_change_no_other(memory, backend):
    inputs = draw(3, 8, 6, 14)
    full = run(inputs, heads=2, memory=memory, return_conv=True)

    def call(i):
        return dict(zip(("y", "u"), ops.local_encoder_layer(**i, heads=2, memory=memory, return_conv=True), strict=True))

    for names in (("x",), ("conv_weight", "norm2_bias"), tuple(n for n in inputs if n != "x")):
        _, gradients = outputs_and_gradients(call, inputs, names)
        for name in names:
            assert torch.equal(gradients[name], full[f"gradient of {name}"]), name


@pytest.mark.parametrize("of", ["y", "u"])
def test_gradient_of_one_output_alone(of, backend):
    inputs = draw(3, 8, 6, 14)

    def call(i):
        return {of: ops.local_encoder_layer(**i, heads=2, return_conv=True)[of == "u"]}

    _, gradients = outputs_and_gradients(call, inputs, ("x", "conv_weight", "conv_bias"))
    with ak.use_backend("reference"):
        _, expected = outputs_and_gradients(call, {n: t.double() for n, t in inputs.items()}, ("x", "conv_weight", "conv_bias"))
    assert_all_close(gradients, expected)


def test_the_output_is_normed(backend):
    inputs = draw(4, 9, 16, 20)
    inputs |= {"norm2_weight": torch.ones(16), "norm2_bias": torch.zeros(16)}
    y = ops.local_encoder_layer(**inputs, heads=4)
    assert_close("mean", y.mean(2) + 1, torch.ones(4, 9))
    # The norm's eps of 1e-5, beside the variance of what it takes in.
    assert_close("variance", y.var(2, correction=0), torch.ones(4, 9), tolerance=Tolerance(1e-3, 0))


def test_samples_do_not_see_each_other(backend):
    inputs = draw(6, 11, 8, 13)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    y, u = ops.local_encoder_layer(**inputs, heads=2, return_conv=True)
    shuffled = ops.local_encoder_layer(**inputs | {"x": inputs["x"][order]}, heads=2, return_conv=True)
    assert_close("y", shuffled[0], y[order])
    assert_close("u", shuffled[1], u[order])


def test_order_of_heads_is_no_matter(backend):
    """Heads permuted in the projections and in the output projection's columns."""
    d, heads = 12, 3
    inputs = draw(2, 7, d, 9, conv=False)
    order = torch.tensor([2, 0, 1])
    columns = torch.arange(d).view(heads, -1)[order].flatten()
    rows = torch.cat([columns, d + columns, 2 * d + columns])
    permuted = inputs | {"in_proj_weight": inputs["in_proj_weight"][rows], "in_proj_bias": inputs["in_proj_bias"][rows]}
    permuted |= {"out_proj_weight": inputs["out_proj_weight"][:, columns]}
    assert_close("y", ops.local_encoder_layer(**permuted, heads=heads), ops.local_encoder_layer(**inputs, heads=heads))


# Kernels and their limits


def test_explanations():
    small = draw(2, 4, 8, 5)
    explain = ak.explain(ops.local_encoder_layer, **small, heads=2)
    assert explain.kernel == ("cpp" if _library.compiled().problem is None else "reference")
    long = ak.explain(ops.local_encoder_layer, **draw(1, 513, 4, 5), heads=2)
    assert long.kernel == "torch" and "up to 512 steps, x has 513" in str(long)


@pytest.mark.parametrize(("setting", "expected"), [("tf32", "tf32"), ("ieee", "ieee"), ("none", "ieee")])
def test_products_are_as_precise_as_torchs(setting, expected):
    pytest.importorskip("triton")
    from alphakernels.ops.local_encoder_layer.triton import _precision

    matmul = torch.backends.cuda.matmul  # which pytest's monkeypatch cannot put back: it answers by __getattr__
    before, matmul.fp32_precision = matmul.fp32_precision, setting
    try:
        assert _precision(torch.zeros(1)) == expected
        assert _precision(torch.zeros(1).bfloat16()) == "ieee"
    finally:
        matmul.fp32_precision = before


def test_limits_of_the_triton_kernel():
    assert module.triton_limit(256, torch.float32) is None
    assert module.triton_limit(512, torch.bfloat16) is None
    assert module.triton_limit(257, torch.float32) == "the triton kernel takes d up to 256 in float32, x has 257"
    assert module.triton_limit(513, torch.float16) == "the triton kernel takes d up to 512 in float16, x has 513"


@pytest.mark.skipif(not INTERPRETED, reason="asks for the Triton kernel")
def test_interpreted_kernel_refuses_what_does_not_fit():
    wide, double = draw(1, 2, 257, 3), draw(1, 2, 4, 3, dtype=torch.float64)
    with ak.use_backend("triton"):
        with pytest.raises(RuntimeError, match="takes d up to 256 in float32, x has 257"):
            ops.local_encoder_layer(**wide, heads=1)
        with pytest.raises(RuntimeError, match="the Triton kernel takes bfloat16, float16, float32, got float64"):
            ops.local_encoder_layer(**double, heads=1)


@pytest.mark.skipif(not INTERPRETED, reason="of the Triton kernel")
@pytest.mark.parametrize("steps", [9, 70])
def test_interpreted_kernel_sums_half_precision_in_float32(steps):
    inputs = draw(3, steps, 16, 32, dtype=torch.float16)
    with ak.use_backend("triton"):
        torch.manual_seed(3)
        found = run(inputs, heads=2, dropout=0.2)
    torch.manual_seed(3)
    expected = exact(inputs, heads=2, dropout=0.2)
    # Intermediate tensors are rounded to half precision a few times on the way.
    assert_all_close(found, expected, tolerance=Tolerance(8e-3, 8e-3))


@pytest.mark.skipif(not INTERPRETED, reason="of the Triton kernel")
def test_interpreted_kernel_parts_of_the_weights_gradient():
    """Enough tokens that several programs sum over them, the last over fewer."""
    inputs = draw(13, 60, 8, 40)
    with ak.use_backend("triton"):
        assert_all_close(run(inputs, heads=2), exact(inputs, heads=2))


def test_second_derivatives_are_refused():
    if _library.compiled().problem:
        pytest.skip(_library.compiled().problem)
    inputs = draw(1, 3, 4, 5)
    x = inputs["x"].requires_grad_()
    (gradient,) = torch.autograd.grad(ops.local_encoder_layer(**inputs, heads=1).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(gradient.sum(), x)


def test_reference_is_torchs_layer():
    d, heads, f = 12, 3, 20
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(d, heads, f, 0.0, batch_first=True, dtype=torch.float64)
    inputs = draw(4, 8, d, f, conv=False, dtype=torch.float64)
    names = ["self_attn.in_proj_weight", "self_attn.in_proj_bias", "self_attn.out_proj.weight", "self_attn.out_proj.bias"]
    names += [name.replace("_", ".") for name in reference.NAMES[4:12]]
    layer.load_state_dict({theirs: inputs[ours] for theirs, ours in zip(names, reference.NAMES, strict=False)})
    with ak.use_backend("reference"):
        assert_close("y", ops.local_encoder_layer(**inputs, heads=heads), layer(inputs["x"]))


def test_no_hidden_columns():
    """The FFN is its second bias then; memory that a call before has used shows what is not written."""
    torch.manual_seed(0)
    d, x = 16, torch.randn(9, 5, 16, dtype=torch.float64)

    def run(hidden, backend):
        shapes = [(3 * d, d), (3 * d,), (d, d), (d,), (hidden, d), (hidden,), (d, hidden), *[(d,)] * 5]
        generator = torch.Generator().manual_seed(1)
        given = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
        inputs = [x.clone().requires_grad_(), *given]
        with ak.use_backend(backend):
            out = ops.local_encoder_layer(*inputs, heads=2)[0]
            return [out, *torch.autograd.grad(out.square().sum(), inputs)]

    expected = run(0, "reference")
    for _ in range(3):
        run(40, "cpp")
        for ours, theirs in zip(run(0, "cpp"), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
