"""recurrent's CUDA kernels without a GPU: their numbers, run on the CPU thread by thread (csrc/cuda/host_block.h), and their choice."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest
import recurrent_on_host as host
import torch
from recurrent_on_host import cuda

import alphakernels as ak
from alphakernels import ops
from alphakernels.ops import _backend, _library, _random
from alphakernels.ops._library import OPS
from alphakernels.testing import Tolerance, assert_close, cases, outputs_and_gradients
from alphakernels.testing.cases.recurrent import _case

# Operands of tf32 have 11 bits: products err by 2^-11 at most, sums of many by less.
TF32 = Tolerance(2e-3, 2e-3)
# (B, T, I, H, layers): tiles of 16 rows that are full, cut and alone; hidden sizes of both extents, and around vectors of 4.
SIZES = [(17, 5, 6, 64, 2), (16, 3, 5, 128, 1), (33, 4, 7, 100, 2), (1, 7, 3, 65, 1), (15, 2, 4, 6, 2), (3, 4, 2, 127, 1), (49, 2, 8, 72, 3)]
PRECISIONS = {
    "fp32": (torch.float32, "ieee", None),
    "tf32": (torch.float32, "tf32", TF32),
    "bf16": (torch.bfloat16, "ieee", None),
    "fp16": (torch.float16, "ieee", None),
}
RECURRENT = [c for c in cases("contract") + cases("gradcheck") if c.op == "recurrent"]
LARGER = [_case(f"{cell} {s}", cell, *s, initial=True, dropout=0.3) for cell in ("gru", "lstm") for s in SIZES]


@pytest.fixture(params=PRECISIONS)
def precision(request, host_kernels, monkeypatch, threads):
    """(dtype, tolerance), with the calls of recurrent on the kernels, and unwritten memory full of NaN."""
    dtype, tf32, tolerance = PRECISIONS[request.param]
    threads(1)
    monkeypatch.setattr(_backend, "run", host.run)
    before = torch.backends.cudnn.rnn.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = tf32
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield dtype, tolerance
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.rnn.fp32_precision = before


def exact(inputs):
    return {name: None if t is None else t.double() for name, t in inputs.items()}


def compare(case, actual, expected, **options):
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in theirs:
            assert_close(f"{case}: {name}", ours[name], theirs[name], **options)


@pytest.mark.parametrize("case", RECURRENT + LARGER, ids=str)
def test_parity(case, precision):
    dtype, tolerance = precision
    inputs = case.inputs(dtype, seed=1)
    before = {name: t.clone() for name, t in inputs.items() if t is not None}
    actual = outputs_and_gradients(case.call, inputs, case.needs_grad)
    assert all(torch.equal(inputs[name], t) for name, t in before.items())
    assert all(t.dtype == dtype for results in actual for t in results.values())
    compare(case, actual, outputs_and_gradients(case.reference, exact(inputs), case.needs_grad), dtype=dtype, tolerance=tolerance)


@pytest.mark.parametrize("case", LARGER[:1] + LARGER[-1:], ids=str)
def test_threads_wait_for_each_other(case, precision, host_kernels):
    """In whatever order warps and lanes run between barriers: the same bits."""
    inputs = case.inputs(precision[0], seed=2)
    results = []
    for order in (1, 2, 3):
        host_kernels.set_order(order)
        results.append(outputs_and_gradients(case.call, inputs, case.needs_grad))
    for result in results[1:]:
        for ours, theirs in zip(result, results[0], strict=True):
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_inference_keeps_nothing(cell, precision):
    case = _case("inference", cell, 21, 4, 5, 24, 2, sequence=False)
    inputs = case.inputs(precision[0], seed=3)
    expected = outputs_and_gradients(case.call, inputs, case.needs_grad)[0]
    with torch.no_grad():
        found = case.call(inputs)
    assert all(torch.equal(found[name], t) for name, t in expected.items())


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_each_output_alone(cell, precision):
    """A gradient that comes in through one output only."""
    dtype, tolerance = precision
    case = _case("alone", cell, 18, 3, 4, 20, 2, initial=True)
    inputs = case.inputs(dtype, seed=4)
    for name in case.call(inputs):
        runs = [
            outputs_and_gradients(lambda i, f=f, name=name: {name: f(i)[name]}, given, case.needs_grad)
            for f, given in ((case.call, inputs), (case.reference, exact(inputs)))
        ]
        compare(f"{case} {name}", *runs, dtype=dtype, tolerance=tolerance)


def test_not_a_number_stays_in_its_row(precision):
    case = LARGER[0]
    inputs = case.inputs(precision[0], seed=5)
    inputs["x"][3, 2, 1] = torch.nan
    found, gradients = outputs_and_gradients(case.call, inputs, case.needs_grad)
    expected, exact_gradients = outputs_and_gradients(case.reference, exact(inputs), case.needs_grad)
    for ours, theirs in ((found, expected), (gradients, exact_gradients)):
        assert all(torch.equal(ours[name].isnan(), theirs[name].isnan()) for name in theirs)


@pytest.mark.parametrize("case", [c for c in RECURRENT if c.purpose == "gradcheck"], ids=str)
def test_opcheck(case, host_kernels, monkeypatch):
    """Shapes and strides are what the fake implementation says."""
    calls = []

    def record(op, reference, tensor, *arguments, **options):
        calls.append(arguments)
        return host.run(op, reference, tensor, *arguments)

    monkeypatch.setattr(_backend, "run", record)
    inputs = case.inputs()
    case.call({name: t.requires_grad_() if name in case.needs_grad else t for name, t in inputs.items()})
    torch.library.opcheck(getattr(torch.ops, host.NAMESPACE).recurrent, calls[0])


def test_one_unit(precision):
    dtype, tolerance = precision
    if dtype != torch.float32:
        pytest.skip("half precision's tolerance is relative to the largest of several elements, here there is one")
    case = _case("one unit", "lstm", 15, 2, 4, 1, 2)
    inputs = case.inputs(dtype)
    runs = [outputs_and_gradients(f, i, case.needs_grad) for f, i in ((case.call, inputs), (case.reference, exact(inputs)))]
    compare(case, *runs, dtype=dtype, tolerance=tolerance)


def test_no_rows(precision):
    weights = [torch.randn(shape, dtype=precision[0]).requires_grad_() for shape in ((15, 3), (15, 5), (15,), (15,))]
    x = torch.empty(0, 4, 3, dtype=precision[0], requires_grad=True)
    found = ops.recurrent(x, weights, cell="gru")
    assert found.output.shape == (0, 4, 5) and found.h_n.shape == (1, 0, 5)
    gradients = torch.autograd.grad(found.output.sum() + found.h_n.sum(), [x, *weights])
    assert not any(g.any() for g in gradients)


def test_autocast_computes_in_float32(precision):
    case = RECURRENT[0]
    inputs = case.inputs(precision[0], seed=6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = case.call(inputs)
    expected = case.call({name: None if t is None else t.float() for name, t in inputs.items()})
    assert all(torch.equal(found[name], t) for name, t in expected.items())


def test_dropouts_mask_is_the_cpus(precision):
    rows = torch.ones(7, 3, 21, dtype=precision[0])
    seed = torch.tensor(2**61 + 12345)
    torch.ops.alphakernels.dropout_rows(rows, rows, seed, 2, 0.4)
    assert torch.equal(rows.view(21, 21), _random.dropout_factors(seed, 2, (21, 21), 0.4, rows))


@pytest.mark.parametrize("number, dtype", [(2, torch.bfloat16), (3, torch.float16)])
def test_conversions_to_half_precision(host_kernels, number, dtype):
    """The stand-ins for the GPU's own: every number there is one way, many and the edges the other."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    found = torch.empty(2**16)
    host_kernels.from_half(number, ctypes.c_int64(2**16), ctypes.c_void_p(every.data_ptr()), ctypes.c_void_p(found.data_ptr()))
    assert torch.equal(found.nan_to_num(7.5), every.view(dtype).float().nan_to_num(7.5))
    generator = torch.Generator().manual_seed(0)
    edges = torch.tensor([0.0, -0.0, 65504, 65519.99, 65520, -70000, 2.0**-14, 2.0**-24, 2.0**-25, 3e-8, 1e-40, torch.inf, -torch.inf])
    halfway = (every.view(dtype).float() + every.roll(-1).view(dtype).float()) / 2
    given = torch.cat([edges, halfway[halfway.isfinite()], torch.randn(9999, generator=generator) * torch.logspace(-9, 6, 9999)])
    bits = torch.empty(len(given), dtype=torch.int16)
    host_kernels.to_half(number, ctypes.c_int64(len(given)), ctypes.c_void_p(given.data_ptr()), ctypes.c_void_p(bits.data_ptr()))
    assert torch.equal(bits, given.to(dtype).view(torch.int16))


# Largest shared memory of a block: A100; GPUs of compute capability 8.6 and 8.9; H100 and B200.
BLOCK = {"8.0": 166912, "8.9": 101376, "9.0": 232448}


@pytest.mark.parametrize(
    "capability, cell, dtype, tf32, hidden, keep, reason",
    [
        ("9.0", "lstm", torch.float32, True, 128, True, None),
        ("9.0", "lstm", torch.bfloat16, True, 128, True, None),
        ("9.0", "gru", torch.float32, False, 128, True, None),
        ("9.0", "lstm", torch.float32, False, 128, False, "the weights of hidden size 128 need 280 KB of shared memory, a block of it has 227"),
        ("9.0", "gru", torch.float16, False, 129, False, "the CUDA kernel takes hidden sizes from 1 to 128, this one is 129"),
        ("8.0", "gru", torch.float32, True, 128, True, None),
        ("8.0", "lstm", torch.float32, True, 128, True, "need 224 KB of shared memory"),
        ("8.9", "lstm", torch.float32, True, 64, True, None),
        ("8.9", "lstm", torch.float32, False, 64, True, None),
        ("8.9", "gru", torch.float16, False, 128, True, None),
        ("8.9", "lstm", torch.float16, False, 128, True, "need 144 KB of shared memory"),
        ("8.9", "gru", torch.float32, True, 128, True, "need 144 KB of shared memory"),
        ("8.0", "gru", torch.float32, True, 64, True, "for which the CUDA library holds no code: build it with ALPHAKERNELS_CUDA_ARCHS=80"),
        ("7.5", "gru", torch.float32, True, 64, True, "the CUDA kernel needs compute capability 8.0, it has compute capability 7.5"),
    ],
)
def test_what_a_gpu_can_run(host_kernels, monkeypatch, capability, cell, dtype, tf32, hidden, keep, reason):
    major, minor = map(int, capability.split("."))
    gpu = SimpleNamespace(major=major, minor=minor, name="it", shared_memory_per_block_optin=BLOCK.get(capability, 65536))
    host_kernels.shared_bytes.restype = ctypes.c_int64
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(_library, "cuda_shared_bytes", lambda *a: host_kernels.shared_bytes(*(ctypes.c_int64(int(v)) for v in a)))
    monkeypatch.setattr(_library, "cuda_runs_on", lambda device: reason is None or "holds no code" not in reason)
    monkeypatch.setattr(cuda, "tf32_allowed", lambda: tf32)
    cuda._device_limit.cache_clear()
    found = cuda.limit(torch.empty(0, dtype=dtype), cell, hidden, keep)
    cuda._device_limit.cache_clear()
    assert (found is None) if reason is None else (reason in found), found


def test_limits_are_asked_under_compile(host_kernels, monkeypatch):
    asked = []
    monkeypatch.setattr(cuda, "_device_limit", lambda *a: asked.append(a) or "too large")

    def call(x):
        return x + 1 if cuda.limit(x, "gru", 64, True) is None else x - 1

    x = torch.randn(3)
    assert torch.equal(torch.compile(call, fullgraph=True, backend="eager")(x), x - 1)
    assert asked == [(None, "gru", cuda.precision_of(torch.float32), 64, True)]
    torch._dynamo.reset()


def test_the_choice_is_told(monkeypatch):
    _backend._choose.cache_clear()
    monkeypatch.setattr(_library, "compiled_cuda", lambda: _library.Compiled(None, None, None))
    chosen = _backend._choose(OPS["recurrent"], "cuda", torch.float32, "auto")
    assert (chosen.kernel, chosen.detail) == ("cuda", "cuda, float32")
    reason = _backend.reason_against(OPS["recurrent"], "cuda", "cuda", torch.float64)
    assert reason == "the CUDA kernel takes bfloat16, float16, float32, got float64"
    assert _backend._choose(OPS["sparsemax"], "cuda", torch.float32, "auto").kernel == "triton"
    assert _backend._choose(OPS["sparsemax"], "cuda", torch.float32, "cuda").kernel == "reference"
    monkeypatch.setattr(_library, "compiled_cuda", lambda: _library.Compiled(None, None, "the CUDA library was not built"))
    _backend._choose.cache_clear()
    chosen = _backend._choose(OPS["recurrent"], "cuda", torch.float32, "auto")
    assert chosen.kernel == "reference" and chosen.reasons["cuda"] == "the CUDA library was not built"
    _backend._choose.cache_clear()


def test_a_size_beyond_the_kernel_is_torchs_and_told(monkeypatch):
    weights = [torch.randn(15, 3), torch.randn(15, 5), torch.randn(15), torch.randn(15)]
    x = torch.randn(2, 4, 3)
    monkeypatch.setattr(_backend, "_choose", lambda *a: _backend.Explanation("recurrent", "cuda", "cuda, float32", {}))
    monkeypatch.setattr(_backend, "choose", lambda *a: "cuda")
    monkeypatch.setattr(cuda, "limit", lambda *a: "it is too large")
    told = ak.explain(ops.recurrent, x, weights, cell="gru")
    assert told.kernel == "torch" and told.reasons["cuda"] == "it is too large"
    with ak.use_backend("cuda"), pytest.raises(RuntimeError, match="recurrent: the cuda kernel was asked for and cannot run: it is too large"):
        ops.recurrent(x, weights, cell="gru")


def test_the_cuda_kernels_do_not_run_on_the_cpu():
    weights = [torch.randn(15, 3), torch.randn(15, 5), torch.randn(15), torch.randn(15)]
    with ak.use_backend("cuda"), pytest.raises(RuntimeError, match="the CUDA kernel runs on a GPU, the tensors are on cpu"):
        ops.recurrent(torch.randn(2, 4, 3), weights, cell="gru")
