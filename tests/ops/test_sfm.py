"""The state-frequency memory: what the recurrence means, and the corners of its kernels."""

from __future__ import annotations

import math

import pytest
import torch

import alphakernels as ak
from alphakernels import ops
from alphakernels.ops.sfm import reference
from alphakernels.testing import Tolerance, assert_close, outputs_and_gradients
from alphakernels.testing.cases.sfm import _draw as draw

PARAMETERS = ("x", "weight_x", "weight_h", "bias", "weight_a", "bias_a")


def inputs(*sizes, masked=False, seed=0, dtype=torch.float64):
    """B, T, D, H, F."""
    drawn = draw(torch.Generator().manual_seed(seed), *sizes, masked)
    return {name: t.to(dtype) if t is not None else None for name, t in drawn.items()}


def by_reference(i):
    return {"h": reference.sfm(**i, training=False)[0]}


def run(i):
    return outputs_and_gradients(lambda i: {"h": ops.sfm(**i)}, i, PARAMETERS)


def shut(i, gate, value=-9.0):
    """The inputs with one gate's linear part at `value` everywhere."""
    units, frequencies = i["bias_a"].numel(), i["weight_a"].numel()
    start = ("i", "state", "cell", "o", "frequency").index(gate) * units
    columns = slice(start, start + (frequencies if gate == "frequency" else units))
    i = {name: t.clone() if t is not None else None for name, t in i.items()}
    i["weight_x"][:, columns] = i["weight_h"][:, columns] = 0
    i["bias"][columns] = value
    return i


@pytest.fixture(params=["auto", "reference"], autouse=True)
def backend(request):
    with ak.use_backend(request.param):
        yield request.param


def test_equals_complex_numbers():
    """S as one complex memory, and the recurrence unrolled by hand."""
    i = inputs(5, 6, 3, 4, 7)
    h, memory = torch.zeros(5, 4).double(), torch.zeros(5, 4, 7, dtype=torch.complex128)
    k = torch.arange(7)
    for t in range(6):
        z = i["x"][:, t] @ i["weight_x"] + h @ i["weight_h"] + i["bias"]
        gate, state, cell, out, frequency = z.split([4, 4, 4, 4, 7], 1)
        sigmoid = torch.nn.functional.hardsigmoid
        wave = torch.polar(torch.ones(7).double(), 2 * math.pi * (t + 1) * k.double() / 7)
        keep = torch.einsum("bh,bf->bhf", sigmoid(state), sigmoid(frequency))
        memory = keep * memory + (sigmoid(gate) * cell.tanh())[:, :, None] * wave
        h = sigmoid(out) * (memory.abs().square() @ i["weight_a"] + i["bias_a"]).tanh()
    # The waves in `inputs` were rounded to float32.
    assert_close("h", ops.sfm(**{**i, "waves": None}), h)


def test_default_waves():
    waves = ops.fourier_waves(5, 3, dtype=torch.float64)
    assert waves.shape == (5, 2, 3)
    assert_close("at one period", waves[2], torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]).double(), tolerance=Tolerance(0, 1e-14))
    assert ops.fourier_waves(4, 2).dtype == torch.float32
    rounded = ops.fourier_waves(60, 25, dtype=torch.float64, angle_dtype=torch.float32)
    exact = ops.fourier_waves(60, 25, dtype=torch.float64)
    assert 1e-6 < (rounded - exact).abs().max() < 3e-5


@pytest.mark.parametrize("value", [-9.0, 9.0])
def test_gates_at_their_ends_pass_no_gradient(value):
    i = shut(shut(inputs(4, 5, 2, 3, 6), "frequency", value), "state", value)
    outputs, gradients = run(i)
    expected = outputs_and_gradients(by_reference, i, PARAMETERS)
    for ours, theirs in zip((outputs, gradients), expected, strict=True):
        for name in theirs:
            assert_close(name, ours[name], theirs[name])
    for gate, columns in (("state", slice(3, 6)), ("frequency", slice(12, 18))):
        assert not gradients["bias"][columns].any(), gate


def test_a_shut_memory_sees_the_last_step_alone():
    i = shut(inputs(4, 5, 2, 3, 6), "state")
    i["weight_h"].zero_()
    last = {**i, "x": i["x"][:, -1:], "waves": i["waves"][-1:]}
    assert_close("h", ops.sfm(**i), ops.sfm(**last))
    wide_open = shut(shut(i, "state", 9.0), "frequency", 9.0)
    assert (ops.sfm(**wide_open) - ops.sfm(**last)).abs().max() > 1e-3


def test_a_shut_output_gate():
    """The kernel's backward pass divides the hidden state by the output gate; where that is zero, nothing flows."""
    i = shut(inputs(4, 5, 2, 3, 6), "o")
    outputs, gradients = run(i)
    assert not outputs["h"].any()
    assert not any(t.any() for t in gradients.values())
    half = shut(inputs(4, 5, 2, 3, 6), "o")
    half["bias"][9] = 0.3  # one unit of three is open
    expected = outputs_and_gradients(by_reference, half, PARAMETERS)
    for kind, theirs in zip(run(half), expected, strict=True):
        for name in theirs:
            assert_close(name, kind[name], theirs[name])


@pytest.mark.parametrize("opening", [1e-6, 1e-3])
def test_a_barely_open_output_gate(opening):
    """Dividing by it must not lose the digits of what it lets through."""
    i = shut(inputs(9, 7, 3, 20, 6, dtype=torch.float32), "o", -3 + 6 * opening)
    exact = {name: t.double() if t is not None else None for name, t in i.items()}
    expected = outputs_and_gradients(by_reference, exact, PARAMETERS)
    # The gate itself is a difference of numbers around 3, so known to 2e-7 / 6.
    tolerance = Tolerance(1e-5 + 1e-7 / opening, 2e-6 + 1e-7 / opening)
    for ours, theirs in zip(run(i), expected, strict=True):
        for name in theirs:
            assert_close(name, ours[name], theirs[name], tolerance=tolerance)


@pytest.mark.parametrize("scale", [1e-30, 1e3, 1e30])
def test_extreme_inputs(scale):
    i = inputs(5, 7, 3, 6, 4, dtype=torch.float32)
    i["x"] *= scale
    exact = {name: t.double() if t is not None else None for name, t in i.items()}
    for (kind, ours), theirs in zip(
        zip(("", "gradient of "), run(i), strict=True), outputs_and_gradients(by_reference, exact, PARAMETERS), strict=True
    ):
        for name in theirs:
            assert_close(kind + name, ours[name], theirs[name], dtype=torch.float32)


def test_permuting_units_permutes_the_output():
    i = inputs(5, 4, 3, 6, 4)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    columns = torch.cat([gate * 6 + order for gate in range(4)] + [torch.arange(24, 28)])
    permuted = {**i, "weight_x": i["weight_x"][:, columns], "weight_h": i["weight_h"][order][:, columns]}
    permuted |= {"bias": i["bias"][columns], "bias_a": i["bias_a"][order]}
    assert_close("h", ops.sfm(**permuted), ops.sfm(**i)[:, order])


def test_a_row_does_not_depend_on_the_batch(backend):
    i = inputs(37, 5, 3, 9, 4, masked=True, dtype=torch.float32)
    together = ops.sfm(**i)
    for row in (0, 15, 16, 36):
        alone = ops.sfm(**{**i, "x": i["x"][row : row + 1], "hidden_mask": i["hidden_mask"][row : row + 1]})
        if backend == "auto":
            assert torch.equal(alone[0], together[row]), row
        assert_close(f"row {row}", alone[0], together[row])


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 16, 17, 300])
def test_any_number_of_rows(rows):
    """Around the tiles, and more tiles than groups of sums."""
    i = inputs(rows, 3, 2, 5, 3)
    expected = outputs_and_gradients(by_reference, i, PARAMETERS)
    for ours, theirs in zip(run(i), expected, strict=True):
        for name in theirs:
            assert_close(name, ours[name], theirs[name], tolerance=Tolerance(1e-11, 1e-11))  # two orders of a long sum


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 8, 9])
def test_any_number_of_steps(steps):
    i = inputs(3, steps, 2, 5, 3, masked=True)
    expected = outputs_and_gradients(by_reference, i, PARAMETERS)
    for ours, theirs in zip(run(i), expected, strict=True):
        for name in theirs:
            assert_close(name, ours[name], theirs[name])


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((5, 20, 2, 40, 200), id="more of S than the backward pass keeps"),
        pytest.param((170, 50, 1, 61, 3), id="gates past the caches"),
        pytest.param((164, 50, 1, 64, 1), id="gates past the caches, whole registers"),
    ],
)
def test_large(sizes, backend):
    if backend == "reference":
        pytest.skip("the kernel's ways of saving memory and time")
    i = inputs(*sizes)
    expected = outputs_and_gradients(by_reference, i, PARAMETERS)
    for ours, theirs in zip(run(i), expected, strict=True):
        for name in theirs:
            assert_close(name, ours[name], theirs[name], tolerance=Tolerance(1e-10, 1e-10))  # two orders of a long sum


def test_gradients_of_some_inputs_alone():
    i = inputs(4, 3, 2, 5, 3)
    _, expected = run(i)
    for names in (("x",), ("bias_a",), ("weight_x", "weight_a")):
        _, gradients = outputs_and_gradients(lambda i: {"h": ops.sfm(**i)}, i, names)
        for name in names:
            assert torch.equal(gradients[name], expected[name])


def test_hidden_states_and_gates_alone_are_kept(backend):
    if backend == "reference":
        pytest.skip("the reference keeps all it computes")
    i = inputs(11, 9, 2, 5, 30)
    kept = []
    i["bias"].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ops.sfm(**i)
    given = {t.data_ptr() for t in i.values() if t is not None}
    assert [t.shape for t in kept if t.data_ptr() not in given] == [(11, 9, 5), (11, 9, 50)]
