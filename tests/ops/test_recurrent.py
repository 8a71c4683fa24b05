"""What is recurrent's own, beside the contract: torch.nn.GRU and torch.nn.LSTM over many sizes, long sequences, dropout, choice."""

from __future__ import annotations

import pytest
import torch

import alphakernels as ak
from alphakernels import ops
from alphakernels.ops import _random
from alphakernels.testing import Tolerance, assert_close

CELLS = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}
# (B, T, I, H, layers): every value of T, H, B and layers that is promised, each with some of the others.
SIZES = [
    (1, 1, 6, 8, 1),
    (1, 240, 6, 20, 2),
    (7, 60, 3, 8, 4),
    (7, 20, 6, 300, 1),
    (800, 12, 6, 64, 2),  # what is kept goes past the caches
    (800, 2, 5, 20, 3),
    (7, 13, 158, 128, 2),
    (21, 20, 6, 300, 2),  # large weights for few rows: back layer by layer
    (1, 5, 20, 300, 2),
    (63, 17, 6, 64, 4),
    (2100, 2, 3, 8, 2),  # more than one tile in a group of the backward pass
]


def stack(cell, inputs, hidden, layers, dtype=torch.float64, **options):
    torch.manual_seed(hidden + layers)
    return CELLS[cell](inputs, hidden, layers, batch_first=True, dtype=dtype, **options)


def weights_of(network):
    return [getattr(network, name) for name in network._flat_weights_names]


def outputs_and_gradients(function, x, leaves):
    found = function(x)
    generator = torch.Generator().manual_seed(1)
    loss = sum((t * torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype)).sum() for t in found)
    return [t.detach() for t in found], torch.autograd.grad(loss, [x, *leaves])


def by_torch(network):
    def run(x):
        output, states = network(x)
        return (output, *states) if isinstance(states, tuple) else (output, states)

    return run


def by_us(network, cell, **options):
    return lambda x: [t for t in ops.recurrent(x, weights_of(network), cell=cell, **options) if t is not None]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_torchs_own_in_float64(cell, sizes):
    batch, steps, inputs, hidden, layers = sizes
    network = stack(cell, inputs, hidden, layers)
    x = torch.randn(batch, steps, inputs, dtype=torch.float64, requires_grad=True)
    leaves = list(network.parameters())
    expected = outputs_and_gradients(by_torch(network), x, leaves)
    with ak.use_backend("cpp"):
        actual = outputs_and_gradients(by_us(network, cell), x, leaves)
        single = network.float()
        x32 = x.detach().float().requires_grad_()
        rounded = outputs_and_gradients(by_us(single, cell), x32, list(single.parameters()))
    for a, e, r in zip(actual[0] + list(actual[1]), expected[0] + list(expected[1]), rounded[0] + list(rounded[1]), strict=True):
        assert_close(f"{cell} {sizes}", a, e, tolerance=Tolerance(1e-9, 1e-12))
        assert_close(f"{cell} {sizes} in float32", r, e, tolerance=Tolerance(1e-5, 5e-6))


@pytest.mark.parametrize("cell", CELLS)
def test_long_sequences_do_not_drift(cell):
    network = stack(cell, 3, 20, 2)
    x = torch.randn(4, 2000, 3, dtype=torch.float64)
    with torch.no_grad(), ak.use_backend("cpp"):
        expected = network(x)[0]
        output = ops.recurrent(x.float(), [w.float() for w in weights_of(network)], cell=cell).output
    assert_close("output", output, expected, torch.float32)
    assert (output[:, -100:] - expected[:, -100:]).abs().max() <= 4 * (output[:, :100] - expected[:, :100]).abs().max() + 1e-6


@pytest.mark.parametrize("cell", CELLS)
def test_the_last_state_alone_is_the_sequences_last(cell):
    network = stack(cell, 6, 33, 3, torch.float32)
    x = torch.randn(65, 21, 6, requires_grad=True)
    leaves = [x, *network.parameters()]
    whole = ops.recurrent(x, weights_of(network), cell=cell).output[:, -1]
    short = ops.recurrent(x, weights_of(network), cell=cell, sequence=False)
    assert short.output.shape == (65, 0, 33) and torch.equal(short.h_n[-1], whole)
    upstream = torch.randn_like(whole)
    for a, b in zip(torch.autograd.grad(whole, leaves, upstream), torch.autograd.grad(short.h_n[-1], leaves, upstream), strict=True):
        assert_close("gradient", a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_windows_that_slide_along_a_history_are_the_same_bits_as_apart(cell, dtype, sliding_windows):
    network, x = stack(cell, 6, 20, 2, dtype), sliding_windows(12, 6, dtype)
    for order in (torch.arange(150), torch.arange(150).flip(0)):
        with torch.no_grad(), ak.use_backend("cpp"):
            found = by_us(network, cell)(x[order])
            rows = [by_us(network, cell)(x[row : row + 1]) for row in order]
        for dim, (together, apart) in enumerate(zip(found, zip(*rows, strict=True), strict=True)):
            assert torch.equal(together.nan_to_num(nan=9.0), torch.cat(apart, min(dim, 1)).nan_to_num(nan=9.0))
        assert found[0].isnan().any(2).any(1).sum() == 2


@pytest.mark.parametrize("cell", CELLS)
def test_feature_major_rows_without_a_copy(cell):
    """Alpha360's layout: each feature over all days; the gradient comes back in x's own shape."""
    network = stack(cell, 6, 16, 1, torch.float32)
    flat = torch.randn(50, 6 * 9, requires_grad=True)
    window = flat.view(50, 6, 9).transpose(1, 2)
    copied = window.detach().contiguous().requires_grad_()
    results = []
    for x, leaf in ((window, flat), (copied, copied)):
        output = ops.recurrent(x, weights_of(network), cell=cell).output
        results.append((output, torch.autograd.grad(output.sin().sum(), leaf)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1].view(50, 6, 9).transpose(1, 2), results[1][1])


@pytest.mark.parametrize("cell", CELLS)
def test_no_rows(cell):
    network = stack(cell, 3, 5, 2, torch.float32)
    x = torch.empty(0, 4, 3, requires_grad=True)
    for backend in ("cpp", "reference"):
        with ak.use_backend(backend):
            found = ops.recurrent(x, weights_of(network), cell=cell)
            assert found.output.shape == (0, 4, 5) and found.h_n.shape == (2, 0, 5)
            grads = torch.autograd.grad(found.output.sum() + found.h_n.sum(), [x, *network.parameters()])
            assert grads[0].shape == x.shape and not any(g.any() for g in grads)


@pytest.mark.parametrize("batch, hidden", [(70, 30), (31, 200)])  # back by groups of rows, and layer by layer
@pytest.mark.parametrize("cell", CELLS)
def test_dropout_is_the_references_and_does_not_depend_on_threads(cell, batch, hidden, threads, monkeypatch):
    monkeypatch.setattr(_random, "draw_seed", lambda device: torch.tensor(2**61 + 12345, device=device))
    network = stack(cell, 4, hidden, 3)
    x = torch.randn(batch, 11, 4, dtype=torch.float64, requires_grad=True)
    states = {name: torch.randn(3, batch, hidden, dtype=torch.float64, requires_grad=True) for name in ("h0", "c0")[: 1 + (cell == "lstm")]}
    leaves = [*network.parameters(), *states.values()]
    runs = []
    for number in (1, 2, 3):
        threads(number)
        with ak.use_backend("cpp"):
            runs.append(outputs_and_gradients(by_us(network, cell, dropout=0.35, **states), x, leaves))
    with ak.use_backend("reference"):
        expected = outputs_and_gradients(by_us(network, cell, dropout=0.35, **states), x, leaves)
    for outputs, gradients in runs:
        for a, first, e in zip([*outputs, *gradients], [*runs[0][0], *runs[0][1]], [*expected[0], *expected[1]], strict=True):
            assert torch.equal(a, first)
            assert_close("with dropout", a, e)


def test_dropout_keeps_the_share_it_should_and_the_mean():
    p, rows, columns = 0.3, 4000, 50
    factors = _random.dropout_factors(_random.draw_seed(), 3, (rows, columns), p, torch.empty(0, dtype=torch.float64))
    kept = (factors > 0).double()
    deviation = (p * (1 - p) / kept.numel()) ** 0.5
    assert abs(kept.mean().item() - (1 - p)) < 5 * deviation
    assert factors[kept > 0].unique().tolist() == [pytest.approx(1 / (1 - p))]
    assert (kept.mean(0) - (1 - p)).abs().max() < 5 * (p * (1 - p) / rows) ** 0.5
    centred = kept - kept.mean()
    for a, b in ((centred[1:], centred[:-1]), (centred[:, 1:], centred[:, :-1])):  # neighbours know nothing of each other
        assert abs((a * b).mean().item()) < 5 * p * (1 - p) / a.numel() ** 0.5
    other = _random.dropout_factors(_random.draw_seed(), 3, (rows, columns), p, factors)
    assert not torch.equal(other, factors)


def test_dropout_follows_manual_seed_and_ends_in_evaluation():
    network = stack("gru", 4, 16, 2, torch.float32)
    x = torch.randn(9, 5, 4)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(ops.recurrent(x, weights_of(network), cell="gru", dropout=0.5).output)
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    nothing = ops.recurrent(x, weights_of(network), cell="gru", dropout=1.0).h_n
    assert torch.equal(nothing[0], ops.recurrent(x, weights_of(network), cell="gru").h_n[0]) and nothing.isfinite().all()


def test_philox_is_the_published_generator():
    """The known answer of Random123 for counter 0 and key 0."""
    words = _random.philox(torch.tensor(0), torch.tensor([0]))
    assert [hex(w) for w in words[0].tolist()] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]


def test_torchs_own_runs_where_no_kernel_can_or_it_is_faster():
    small, large = (stack("lstm", 6, hidden, 1, torch.float32) for hidden in (64, 520))
    x = torch.randn(3, 2, 6)
    assert ak.explain(ops.recurrent, x, weights_of(small), cell="lstm").kernel == "cpp"
    several = weights_of(stack("lstm", 6, 300, 1, torch.float32))
    for keep, limit in ((False, 2), (True, 6)):
        with torch.set_grad_enabled(keep):
            told = [ak.explain(ops.recurrent, torch.randn(rows, 2, 6), several, cell="lstm") for rows in (limit - 1, limit)]
        assert [explanation.kernel for explanation in told] == ["torch", "cpp"]
        assert f"fewer than {limit} rows at hidden size 300, these are {limit - 1}" in told[0].reasons["cpp"]
    half = [w.bfloat16() for w in weights_of(small)]
    told = ak.explain(ops.recurrent, x.bfloat16(), half, cell="lstm")
    assert told.kernel == "torch" and "bfloat16" in told.reasons["cpp"]
    told = ak.explain(ops.recurrent, x, weights_of(large), cell="lstm")
    assert told.kernel == "torch" and "oneDNN" in told.reasons["cpp"]
    expected = large(x)[0]
    assert torch.equal(ops.recurrent(x, weights_of(large), cell="lstm").output, expected)
    with ak.use_backend("cpp"):
        assert_close("asked for", ops.recurrent(x, weights_of(large), cell="lstm").output, expected)


def test_nothing_kept_is_said():
    network = stack("gru", 3, 4, 1, torch.float32)
    x = torch.randn(2, 3, 3, requires_grad=True)
    found = torch.ops.alphakernels.recurrent(x, None, None, weights_of(network), None, "gru", True, True, True, 0.0, False)
    with pytest.raises(RuntimeError, match="keep=False"):
        found[0].sum().backward()


def test_backward_refuses_outputs_of_another_shape():
    x, weights = torch.randn(2, 5, 4), [torch.randn(24, 4), torch.randn(24, 8)]
    kernels = torch.ops.alphakernels
    output, _, _, gates, states = kernels.recurrent(x, None, None, weights, None, "gru", False, True, True, 0.0, True)
    flat = output.reshape(1, 1, -1)
    for name, grad, out in (("grad_output", flat, output), ("grad_output", output.flatten(), output), ("output", output, flat)):
        with pytest.raises(RuntimeError, match=rf": {name} must be of shape \[2, 5, 8\]"):
            kernels.recurrent_backward(grad, None, None, x, None, None, weights, out, gates, states, None, "gru", False, True, 0.0, True)
