"""The CUDA recurrences on a card, against torch's own in float64 on the CPU; what tests/ops/test_recurrent_cuda.py shows without one."""

from __future__ import annotations

import pytest
import torch

import alphakernels as ak
from alphakernels import ops
from alphakernels.ops import _library
from alphakernels.ops.recurrent import cuda
from alphakernels.testing import TOLERANCES, Tolerance, assert_close, outputs_and_gradients
from alphakernels.testing.cases.recurrent import _case

# (B, T, I, H, layers)
SIZES = [(17, 5, 6, 64, 2), (800, 60, 6, 64, 2), (16, 3, 5, 128, 1), (33, 4, 7, 100, 2), (1, 7, 3, 65, 1), (4099, 9, 6, 20, 1)]
PRECISIONS = {
    "fp32": (torch.float32, "ieee", TOLERANCES[torch.float32]),
    "tf32": (torch.float32, "tf32", Tolerance(2e-3, 2e-3)),  # 11 bits of the operands
    "bf16": (torch.bfloat16, "ieee", TOLERANCES[torch.bfloat16]),
    "fp16": (torch.float16, "ieee", TOLERANCES[torch.float16]),
}


@pytest.fixture(params=PRECISIONS)
def precision(request, device):
    problem = _library.compiled_cuda().problem
    if problem is not None:
        pytest.skip(problem)
    dtype, recurrences, tolerance = PRECISIONS[request.param]
    torch.backends.cudnn.rnn.fp32_precision = recurrences  # `device` puts it back
    return dtype, tolerance


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_float64_on_the_cpu(cell, size, precision, device):
    dtype, tolerance = precision
    case = _case("gpu", cell, *size, initial=True, dropout=0.3)
    inputs = case.inputs(dtype, device, seed=1)
    beyond = cuda.limit(inputs["x"], cell, size[3], True)
    if beyond is not None:
        pytest.skip(beyond)
    assert ak.explain(case.call, inputs).kernel == "cuda"
    first = outputs_and_gradients(case.call, inputs, case.needs_grad)
    again = outputs_and_gradients(case.call, inputs, case.needs_grad)
    exact = {name: None if t is None else t.double().cpu() for name, t in inputs.items()}
    expected = outputs_and_gradients(case.reference, exact, case.needs_grad)
    for ours, ours_again, theirs in zip(first, again, expected, strict=True):
        for name in theirs:
            assert torch.equal(ours[name], ours_again[name]), f"{name} differs from run to run"
            assert_close(f"{case}: {name}", ours[name], theirs[name], dtype=dtype, tolerance=tolerance)


def test_hidden_sizes_beyond_the_kernels_are_torchs(precision, device):
    dtype, _ = precision
    network = torch.nn.LSTM(6, 256, device=device, dtype=dtype)
    x = torch.randn(5, 3, 6, device=device, dtype=dtype)
    weights = [w.detach() for w in network.parameters()]
    told = ak.explain(ops.recurrent, x, weights, cell="lstm", batch_first=False)
    assert told.kernel == "torch" and "hidden sizes from 1 to 128" in told.reasons["cuda"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_torchs_own_is_trained_without_dropout(cell, dtype, device):
    """cuDNN goes backward through a call in training alone."""
    case = _case("gpu", cell, 5, 7, 6, 256, 2)
    inputs = case.inputs(dtype, device, seed=1)
    assert ak.explain(case.call, inputs).kernel == "torch"
    found = outputs_and_gradients(case.call, inputs, case.needs_grad)
    exact = {name: None if t is None else t.double().cpu() for name, t in inputs.items()}
    expected = outputs_and_gradients(case.reference, exact, case.needs_grad)
    for ours, theirs in zip(found, expected, strict=True):
        for name in theirs:
            assert_close(f"{case}: {name}", ours[name], theirs[name], tolerance=Tolerance(2e-3, 2e-3))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_offsets_beyond_32_bits(cell, device):
    """Rows again and again until the kept gates have more than 2^31 elements: the last give what they give alone."""
    if _library.compiled_cuda().problem is not None:
        pytest.skip(_library.compiled_cuda().problem)
    steps, hidden, rows = 128, 64, 16
    times = 2**31 // (steps * 4 * hidden * rows) + 2
    if torch.cuda.mem_get_info(device)[0] < 40e9:
        pytest.skip("needs 40 GB of free memory")
    case = _case("long", cell, rows, steps, 3, hidden)
    inputs = case.inputs(torch.bfloat16, device)
    weights = [inputs[name] for name in case.needs_grad[1:]]
    large = inputs["x"].repeat(times, 1, 1).requires_grad_()
    small = inputs["x"].clone().requires_grad_()
    found, expected = (ops.recurrent(x, weights, cell=cell).output for x in (large, small))
    assert_close("output", found[-rows:], expected)  # torch's products may sum in another order
    upstream = torch.randn_like(expected)
    (dx,) = torch.autograd.grad(found, large, upstream.repeat(times, 1, 1))
    assert_close("dx", dx[-rows:], torch.autograd.grad(expected, small, upstream)[0])
