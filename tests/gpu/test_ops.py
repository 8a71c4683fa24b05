"""The ops where only a GPU shows it: which kernel is chosen, offsets beyond 32 bits, other streams, other devices, no waiting."""

from __future__ import annotations

import pytest
import torch

import alphakernels as ak
from alphakernels.models import GATsNet, HISTNet
from alphakernels.ops._library import OPS
from alphakernels.testing import TOLERANCES, Tolerance, assert_close, cases, outputs_and_gradients

# Of each op one case whose rows do not see each other, and the elements a row has of the largest tensor that its kernels address.
ROWWISE = {
    "sparsemax-4096 x 158": 158,
    "attentive_mask-4096 x 158 updated": 158,
    "ghost_batch_norm-4096 x 256, vbs 128": 256,
    "glu_block-4096 x 256, vbs 128": 256,
    "attention_pool-800 x 60, H 64": 60 * 64,
    "local_encoder_layer-100 x 60, d 64, FFN 2048": 60 * 3 * 64,
    "sfm-72 x 60, H 64, F 25": 60 * (4 * 64 + 25),
}
BY_NAME = {str(case): case for case in cases("contract") + cases("benchmark")}
SEVERAL_TENSORS = 16  # of 2^31 elements, at once


def named(case_names):
    return pytest.mark.parametrize("case", [BY_NAME[name] for name in case_names], ids=str)


def first_of_each_op():
    return list({case.op: case for case in cases("contract")}.values())


@pytest.mark.parametrize("case", first_of_each_op(), ids=lambda case: case.op)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_automatic_choice(device, case, dtype):
    op = OPS[case.op]
    explanation = ak.explain(case.call, case.inputs(dtype, device))
    assert explanation.kernel != "cpp"
    if op.triton is not None and dtype in op.triton_dtypes:
        assert explanation.kernel == "triton", explanation


# torch's own kernels draw other dropout masks.
@pytest.mark.parametrize("case", [c for c in cases("contract") if OPS[c.op].triton is None and "dropout" not in c.id], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_ops_without_a_triton_kernel(device, case, dtype):
    """What runs in their place on a GPU keeps the contract's numbers."""
    inputs = case.inputs(dtype, device, seed=1)
    actual = outputs_and_gradients(case.call, inputs, case.needs_grad)
    exact = {name: None if t is None else t.double() for name, t in inputs.items()}
    expected = outputs_and_gradients(case.reference, exact, case.needs_grad)
    tolerance = case.tolerance if dtype == torch.float32 else case.half_tolerance
    for ours, theirs in zip(actual, expected, strict=True):
        for name in theirs:
            assert_close(f"{case}: {name}", ours[name], theirs[name], dtype=dtype, tolerance=tolerance)


@named(ROWWISE)
def test_offsets_beyond_32_bits(device, case):
    """The case's rows again and again, until a tensor has more than 2^31 elements: the last ones give what they give alone."""
    dtype = torch.bfloat16
    small = case.inputs(dtype, device, seed=2)
    rows = len(small[case.needs_grad[0]])
    times = 2**31 // (rows * ROWWISE[str(case)]) + 2
    free, _ = torch.cuda.mem_get_info(device)
    if free < SEVERAL_TENSORS * 2**31 * dtype.itemsize:
        pytest.skip(f"needs {SEVERAL_TENSORS * 2**31 * dtype.itemsize / 1e9:.0f} GB of free memory, got {free / 1e9:.0f}")
    many = {name for name, t in small.items() if t is not None and t.dim() > 1 and len(t) == rows}
    large = {name: t.repeat(times, *[1] * (t.dim() - 1)) if name in many else t for name, t in small.items()}
    leaves = [name for name in case.needs_grad if name in many]
    expected = outputs_and_gradients(case.call, small, tuple(leaves), seed=3)
    for name in leaves:
        large[name].requires_grad_()
    outputs = {name: t for name, t in case.call(large).items() if t.dim() > 1 and len(t) == rows * times}
    assert outputs
    generator, given, grads = torch.Generator().manual_seed(4), [], []
    for name, t in case.call(small).items():  # the same weights as `outputs_and_gradients` draws
        weight = torch.randn(t.shape, generator=generator).to(t)
        if name in outputs and outputs[name].requires_grad:
            given.append(outputs[name])
            grads.append(weight.repeat(times, *[1] * (t.dim() - 1)))
    gradients = dict(zip(leaves, torch.autograd.grad(given, [large[name] for name in leaves], grads), strict=True))
    del grads, given
    tolerance = case.half_tolerance or TOLERANCES[dtype]
    for name, t in outputs.items():
        assert_close(f"{name}, last rows", t[-rows:], expected[0][name], tolerance=tolerance)
        assert not t.isnan().any()
    if all(name in outputs for name in expected[0]):  # else the sum has terms that are not of rows
        for name, t in gradients.items():
            assert_close(f"gradient of {name}, last rows", t[-rows:], expected[1][name], tolerance=tolerance)


def test_attention_over_days_beyond_32_bits(device):
    days, stocks, hidden = 8400, 4096, 64  # 2.2e9 elements
    h = torch.randn(stocks, hidden, device=device, dtype=torch.bfloat16).repeat(days, 1)
    s, t = (torch.randn(stocks, device=device, dtype=torch.bfloat16).repeat(days) for _ in range(2))
    offsets = torch.arange(days + 1) * stocks
    alone = ak.ops.complete_graph_attention(s[:stocks], t[:stocks], h[:stocks])
    found = ak.ops.complete_graph_attention(s, t, h, offsets=offsets)
    assert_close("last day", found[-stocks:], alone)


@pytest.mark.parametrize("case", first_of_each_op(), ids=lambda case: case.op)
def test_another_stream(device, case):
    """On a stream whose work before it is long: a kernel on any other would read what is not there yet."""
    values = case.inputs(torch.float32, device, seed=5)
    expected = outputs_and_gradients(case.call, values, case.needs_grad)
    inputs = {name: None if t is None else torch.full_like(t, torch.nan) for name, t in values.items()}
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        for name, t in inputs.items():
            if t is not None:
                t.copy_(values[name])
        actual = outputs_and_gradients(case.call, inputs, case.needs_grad)
    stream.synchronize()
    for ours, theirs in zip(actual, expected, strict=True):
        for name in theirs:
            assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("case", first_of_each_op(), ids=lambda case: case.op)
def test_another_device_than_the_current_one(case):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    other = torch.device("cuda", 1 - torch.cuda.current_device())
    here = outputs_and_gradients(case.call, case.inputs(torch.float32, "cuda", seed=6), case.needs_grad)
    there = outputs_and_gradients(case.call, case.inputs(torch.float32, other, seed=6), case.needs_grad)
    for ours, theirs in zip(there, here, strict=True):
        for name in theirs:
            assert ours[name].device == other
            assert_close(name, ours[name], theirs[name])


@pytest.mark.parametrize("cls", [GATsNet, HISTNet])
def test_days_in_one_call_do_not_wait_for_the_device(device, cls):
    torch.manual_seed(0)
    net = cls(d_feat=3, hidden_size=16, num_layers=1)
    offsets = torch.tensor([0, 40, 41, 41, 97])
    given = [torch.randn(97, 15)] + ([(torch.rand(97, 7) < 0.3).float()] if cls is HISTNet else [])
    expected = net(*given, offsets)
    net.to(device)
    given = [t.to(device) for t in given]
    net(*given, offsets).sum().backward()  # compiles, allocates
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = net(*given, offsets)
        found.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_close("scores", found, expected, tolerance=Tolerance(1e-4, 1e-5))
    assert_close("offsets on the GPU", net(*given, offsets.to(device)), found)
