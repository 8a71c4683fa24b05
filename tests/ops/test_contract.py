"""Every case of every op through one contract: numbers, layouts, sizes, determinism, autocast, errors."""

from __future__ import annotations

import pytest
import torch

import alphakernels as ak
from alphakernels import ops
from alphakernels.testing import (
    BAD_INPUTS,
    Tolerance,
    assert_close,
    assert_no_worse_than_eager,
    cases,
    outputs_and_gradients,
)

CONTRACT = pytest.mark.parametrize("case", cases("contract"), ids=str)
SMALL = pytest.mark.parametrize("case", cases("gradcheck"), ids=str)


def float64(inputs):
    return {name: t.double() if t is not None else None for name, t in inputs.items()}


def compare(case, actual, expected, **options):
    for kind, ours, theirs in zip(("", "gradient of "), actual, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in theirs:
            assert_close(f"{case}: {kind}{name}", ours[name], theirs[name], **options)


def assert_bitwise(case, actual, expected):
    for kind, ours, theirs in zip(("", "gradient of "), actual, expected, strict=True):
        for name in theirs:
            assert torch.equal(ours[name], theirs[name]), f"{case}: {kind}{name} differs bitwise"


def all_of(results):
    """(outputs, gradients) as one dict."""
    outputs, gradients = results
    return outputs | {f"gradient of {name}": t for name, t in gradients.items()}


@CONTRACT
def test_parity(case, route):
    backend, device = route
    dtypes = {"cpp": (torch.float32, torch.float64), "triton": (torch.float32,), "cuda": (torch.float32,)}[backend]
    if device == "cuda":
        dtypes += (torch.bfloat16, torch.float16)
    tolerances = {torch.float32: case.tolerance, torch.bfloat16: case.half_tolerance, torch.float16: case.half_tolerance}
    for dtype in dtypes:
        inputs = case.inputs(dtype, device, seed=1)
        actual = outputs_and_gradients(case.call, inputs, case.needs_grad)
        assert all(t.dtype == dtype for t in all_of(actual).values())
        expected = outputs_and_gradients(case.reference, float64(inputs), case.needs_grad)
        compare(case, actual, expected, dtype=dtype, tolerance=tolerances.get(dtype))


@pytest.mark.parametrize("case", [c for c in cases("contract") + cases("benchmark") if "65536" not in c.id], ids=str)
def test_error_is_no_larger_than_eagers(case, route):
    if route == ("triton", "cpu") and case.purpose == "benchmark":
        pytest.skip("the interpreter is too slow for this size")
    errors = {}
    for seed in range(8 if case.purpose == "contract" else 1):
        inputs = case.inputs(torch.float32, route[1], seed)
        runs = [
            all_of(outputs_and_gradients(f, i, case.needs_grad))
            for f, i in ((case.call, inputs), (case.eager, inputs), (case.reference, float64(inputs)))
        ]
        for name in runs[0]:
            errors.setdefault(name, []).append([run[name].flatten() for run in runs])
    for name, pieces in errors.items():
        actual, eager, exact = (torch.cat(column) for column in zip(*pieces, strict=True))
        if exact.numel() >= 100:
            assert_no_worse_than_eager(f"{case}: {name}", actual, eager, exact)


@SMALL
def test_gradcheck(case):
    inputs = case.inputs(torch.float64)
    given = [inputs[name].requires_grad_() for name in case.needs_grad]

    def function(*tensors):
        outputs = case.call(inputs | dict(zip(case.needs_grad, tensors, strict=True)))
        return tuple(t for t in outputs.values() if t.requires_grad)

    training_bias = "linear_bias" in case.needs_grad and "evaluation" not in case.id and "folded" not in case.id
    if training_bias:  # left out of x, it moves no output in training
        names = [name for name in case.needs_grad if name != "linear_bias"]
        given = [inputs[name] for name in names]
        inner = function
        position = case.needs_grad.index("linear_bias")

        def function(*tensors):
            return inner(*tensors[:position], inputs["linear_bias"], *tensors[position:])

    with ak.use_backend("cpp"):
        assert torch.autograd.gradcheck(function, given)


@CONTRACT
@pytest.mark.parametrize("layout", ["strided", "transposed", "offset"])
def test_layouts(case, layout, route):
    def laid_out(t):
        if t is None or t.dim() == 0:
            return t
        if layout == "strided":
            wide = torch.full((*t.shape[:-1], 2 * t.shape[-1] + 1), torch.nan, device=t.device)
            wide[..., 1::2] = t
            return wide[..., 1::2]
        if layout == "transposed":
            order = list(range(t.dim()))[::-1]
            return t.permute(order).contiguous().permute(order)
        return torch.cat([torch.full((3,), torch.nan, device=t.device), t.flatten()])[3:].view(t.shape)

    inputs = case.inputs(torch.float32, route[1], seed=3)
    expected = outputs_and_gradients(case.call, inputs, case.needs_grad)

    # The leaves are contiguous, what the op sees is not; so the gradients that come back are laid out anew as well.
    def call(i):
        return {k: laid_out(t) for k, t in case.call({k: laid_out(t) for k, t in i.items()}).items()}

    assert_bitwise(case, outputs_and_gradients(call, inputs, case.needs_grad), expected)


@CONTRACT
def test_expanded_inputs_and_gradients(case, route):
    """Rows that are one row in memory, and the gradient of a sum, whose elements are one number in memory."""
    inputs = case.inputs(torch.float32, route[1], seed=4)
    two = {k: t for k, t in inputs.items() if t is not None and t.dim() == 2}

    def run(lay_out):
        i = {k: t.clone().requires_grad_() if k in case.needs_grad and k not in two else t for k, t in inputs.items()}
        rows = {k: t[:1].clone().requires_grad_(k in case.needs_grad) for k, t in two.items()}
        i |= {k: lay_out(rows[k].expand(t.shape)) for k, t in two.items()}
        outputs = case.call(i)
        leaves = [rows.get(k, i[k]) for k in case.needs_grad]
        loss = sum(t.sum() for t in outputs.values() if t.requires_grad)
        if not two:
            leaves = [i[k] for k in case.needs_grad]
        return outputs, dict(zip(case.needs_grad, torch.autograd.grad(loss, leaves), strict=True))

    assert_bitwise(case, run(lambda t: t), run(lambda t: t.contiguous()))


@CONTRACT
def test_inputs_are_never_written_to(case, route):
    inputs = case.inputs(torch.float32, route[1], seed=5)
    before = {k: t.clone() for k, t in inputs.items() if t is not None}
    leaves = [inputs[k].requires_grad_() for k in case.needs_grad]
    outputs = {k: t for k, t in case.call(inputs).items() if t.requires_grad}
    grads = [torch.randn_like(t) for t in outputs.values()]
    grads_before = [g.clone() for g in grads]
    kept = {k: t.detach().clone() for k, t in outputs.items()}
    torch.autograd.grad(list(outputs.values()), leaves, grads)
    for name, t in before.items():
        assert torch.equal(inputs[name], t), f"{case}: {name} was written to"
    for name, t in kept.items():
        assert torch.equal(outputs[name], t), f"{case}: the backward pass wrote to {name}"
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_before, strict=True))


@CONTRACT
def test_every_output_element_is_written(case, route):
    """Fresh memory is filled with NaN: whatever a kernel forgets shows."""
    inputs = case.inputs(torch.float32, route[1], seed=6)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3).isnan().all()
        results = all_of(outputs_and_gradients(case.call, inputs, case.needs_grad))
    finally:
        torch.use_deterministic_algorithms(False)
    for name, t in results.items():
        assert not t.isnan().any(), f"{case}: {name} has unwritten elements"


@pytest.mark.parametrize("case", [c for c in cases("benchmark") if "65536" not in c.id and "512" not in c.id], ids=str)
def test_same_bits_run_to_run_and_with_any_number_of_threads(case, threads):
    results = []
    for number in (1, 2, 4, 3, 1):
        threads(number)
        inputs = case.inputs(torch.float32, seed=7)
        results.append(outputs_and_gradients(case.call, inputs, case.needs_grad))
    for result in results[1:]:
        assert_bitwise(case, result, results[0])


@pytest.mark.parametrize("case", [c for c in cases("contract") if not c.follows_autocast], ids=str)
def test_autocast_computes_in_float32(case, route):
    device = route[1]
    inputs = case.inputs(torch.float32, device, seed=8)
    half = [k for k, t in inputs.items() if t is not None and (t.dim() == 2 or case.op == "sparsemax")]  # made by linear layers
    mixed = inputs | {k: inputs[k].bfloat16() for k in half}

    def call(i):
        with torch.autocast(device, dtype=torch.bfloat16):
            return case.call(i)

    outputs, gradients = outputs_and_gradients(call, mixed, case.needs_grad)
    assert {k: t.dtype for k, t in outputs.items()} == {k: torch.float32 for k in outputs}
    assert {k: t.dtype for k, t in gradients.items()} == {k: mixed[k].dtype for k in gradients}
    rounded = {k: t.float() if t is not None else None for k, t in mixed.items()}
    expected, expected_gradients = outputs_and_gradients(case.call, rounded, case.needs_grad)
    for name in outputs:
        assert torch.equal(outputs[name], expected[name])
    for name in gradients:
        assert_close(f"{case}: gradient of {name}", gradients[name], expected_gradients[name].to(mixed[name].dtype))


@pytest.mark.parametrize("bad", BAD_INPUTS, ids=str)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_inputs(bad, backend):
    with ak.use_backend(backend), pytest.raises(bad.error, match=bad.message):
        bad.call()


def _no_rows(features):
    return torch.empty(0, features, requires_grad=True)


@pytest.mark.parametrize(
    "call, x, shape",
    [
        (ops.sparsemax, torch.empty(0, 5, requires_grad=True), (0, 5)),
        (ops.sparsemax, torch.empty(5, 0, requires_grad=True), (5, 0)),
        (lambda x: ops.sparsemax(x, 1), torch.empty(3, 4, 0, requires_grad=True), (3, 4, 0)),
        (lambda x: ops.sparsemax(x, 0), torch.empty(0, 4, requires_grad=True), (0, 4)),
        (lambda x: ops.attentive_mask(x, torch.ones(0, 4)).mask, _no_rows(4), (0, 4)),
        (lambda x: ops.attentive_mask(x, torch.ones(0, 4), update_prior=True).new_prior, _no_rows(4), (0, 4)),
        (lambda x: ops.attentive_mask(x, torch.ones(0, 4)).entropy, _no_rows(4), ()),
        (
            lambda x: ops.ghost_batch_norm(x, None, None, torch.ones(4), torch.ones(4), virtual_batch_size=3, training=False),
            _no_rows(4),
            (0, 4),
        ),
        (lambda x: ops.ghost_batch_norm(x, virtual_batch_size=3), torch.empty(6, 0, requires_grad=True), (6, 0)),
        (lambda x: ops.glu_block(x, training=False), _no_rows(4), (0, 2)),
        (
            lambda x: ops.glu_block(x, None, None, torch.ones(4), torch.ones(4), training=False),
            _no_rows(4),
            (0, 2),
        ),
        (lambda x: ops.glu_block(x, virtual_batch_size=3), torch.empty(6, 0, requires_grad=True), (6, 0)),
        (
            lambda x: ops.sfm(x, torch.ones(2, 11), torch.ones(2, 11), torch.ones(11), torch.ones(3), torch.ones(2)),
            torch.empty(0, 4, 2, requires_grad=True),
            (0, 2),
        ),
    ],
)
def test_empty(call, x, shape, route):
    backend, device = route
    x = x.detach().to(device).requires_grad_()
    for name in (backend, "reference"):
        with ak.use_backend(name), torch.device(device):
            out = call(x)
            assert out.shape == shape
            assert not out.isnan().any()
            (grad,) = torch.autograd.grad(out.sum(), x)
            assert grad.shape == x.shape


def _pool(i):
    out, weights = ops.attention_pool(i["h"], i["weight"], i["bias"], i["score"], return_weights=True)
    return {"out": out, "weights": weights}


NO_COLUMNS = {
    "linear": (lambda i: {"out": ops.linear(**i)}, {"x": torch.randn(200, 5), "weight": torch.empty(0, 5), "mask": torch.rand(200, 5)}),
    "linear without a mask": (lambda i: {"out": ops.linear(**i)}, {"x": torch.randn(200, 5), "weight": torch.empty(0, 5)}),
    "linear without a depth": (lambda i: {"out": ops.linear(**i)}, {"x": torch.empty(200, 0), "weight": torch.empty(5, 0)}),
    "attention_pool without attention": (
        _pool,
        {"h": torch.randn(40, 9, 5), "weight": torch.empty(0, 5), "bias": torch.empty(0), "score": torch.empty(0)},
    ),
    "attention_pool without features": (
        _pool,
        {"h": torch.empty(40, 9, 0), "weight": torch.empty(3, 0), "bias": torch.randn(3), "score": torch.randn(3)},
    ),
    "attentive_mask": (
        lambda i: {"entropy": ops.attentive_mask(**i).entropy},
        {"logits": torch.empty(40, 0), "prior": torch.empty(40, 0)},
    ),
    "glu_layer": (
        lambda i: {"out": ops.glu_layer(**i, virtual_batch_size=8)},
        {"x": torch.randn(40, 5), "fc": torch.empty(0, 5), "mask": torch.rand(40, 5)},
    ),
    "sfm": (
        lambda i: {"out": ops.sfm(*i.values())},
        {
            "x": torch.randn(40, 4, 2),
            "weight_x": torch.randn(2, 5),
            "weight_h": torch.empty(0, 5),
            "bias": torch.randn(5),
            "weight_a": torch.randn(5),
            "bias_a": torch.empty(0),
        },
    ),
}


@pytest.mark.parametrize("name", NO_COLUMNS)
def test_no_columns(name):
    """A dimension of none that others do not share: a product's outputs, a hidden size, features. What is left is a constant, or zero."""
    call, inputs = NO_COLUMNS[name]
    with ak.use_backend("reference"):
        expected = outputs_and_gradients(call, inputs, tuple(inputs))
    torch.use_deterministic_algorithms(True, warn_only=True)  # fresh memory is filled with NaN
    try:
        with ak.use_backend("cpp"):
            actual = outputs_and_gradients(call, inputs, tuple(inputs))
    finally:
        torch.use_deterministic_algorithms(False)
    compare(name, actual, expected, tolerance=Tolerance(1e-5, 1e-5, absolute=1e-6))  # a softmax of equals: zero but for rounding


@CONTRACT
def test_meaning_of_nan(case, route, one_thread):
    """NaN in one element goes where the reference lets it go, and nowhere else: not to the rows that a thread works at next, either."""
    inputs = case.inputs(torch.float32, route[1], seed=9)
    name = case.needs_grad[0]
    inputs[name].view(-1)[inputs[name].numel() // 2] = torch.nan
    actual = outputs_and_gradients(case.call, inputs, case.needs_grad)
    expected = outputs_and_gradients(case.reference, float64(inputs), case.needs_grad)
    assert any(t.isnan().any() for t in actual[0].values())
    for gradients in (actual[1], expected[1]):
        gradients.pop("linear_bias", None)  # zero in training, whatever comes in: the reference multiplies by zero
    compare(case, actual, expected, dtype=torch.float32, tolerance=case.tolerance)
