"""Which kernel runs: automatic choice, explicit request, and `explain`, which must tell the same story."""

from __future__ import annotations

import pytest
import torch

import alphakernels as ak
from alphakernels import nn, ops
from alphakernels.ops import _backend, _library
from alphakernels.ops._library import OPS

needs_library = pytest.mark.skipif(_library.compiled().problem is not None, reason=str(_library.compiled().problem))
X = torch.zeros(3, 4)


@pytest.fixture(autouse=True)
def not_interpreting(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    _backend._choose.cache_clear()
    yield
    _backend._choose.cache_clear()


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_automatic_choice_on_the_cpu(dtype):
    explanation = ak.explain(ops.sparsemax, X.to(dtype))
    assert (explanation.op, explanation.kernel) == ("sparsemax", "cpp")
    assert _library.compiled().isa in explanation.detail
    assert str(explanation).startswith("sparsemax: cpp (")


@needs_library
def test_every_op_has_a_cpu_kernel():
    assert {name: _library.has_cpp(name) for name in OPS} == dict.fromkeys(OPS, True)


def test_half_precision_on_the_cpu_falls_back_and_says_why():
    explanation = ak.explain(ops.sparsemax, X.bfloat16())
    assert explanation.kernel == "reference"
    assert set(explanation.reasons) == {"cpp", "triton"}
    if _library.compiled().problem is None:
        assert explanation.reasons["cpp"] == "the C++ kernel takes float32, float64, got bfloat16"
    assert "  not cpp: " in str(explanation) and "plain PyTorch on cpu, bfloat16" in str(explanation)


def test_triton_launches_on_the_gpu_of_its_tensors(monkeypatch):
    entered = []

    class Guard:
        def __init__(self, tensor):
            self.tensor = tensor

        def __enter__(self):
            entered.append(self.tensor)

        def __exit__(self, *error):
            entered.append(None)

    monkeypatch.setattr(torch.cuda, "device_of", Guard)
    assert _library._launch(lambda number, x, y: entered[-1] is x, (1, X, X + 1))
    assert len(entered) == 2 and entered[1] is None


def test_the_reference_on_request():
    with ak.use_backend("reference"):
        explanation = ak.explain(ops.sparsemax, X)
    assert explanation.kernel == "reference"
    assert explanation.reasons["cpp"] == "use_backend('reference') is in force"


@needs_library
def test_a_request_that_cannot_run_raises_the_reason():
    message = (
        "sparsemax: the cpp kernel was asked for and cannot run: the C\\+\\+ kernel takes float32, float64, got float16"
    )
    with ak.use_backend("cpp"), pytest.raises(RuntimeError, match=message):
        ops.sparsemax(X.half())


def test_triton_on_cpu_tensors_needs_its_interpreter():
    with (
        ak.use_backend("triton"),
        pytest.raises(RuntimeError, match="triton kernel .* cannot run: .*TRITON_INTERPRET=1"),
    ):
        ops.sparsemax(X)


def test_a_request_without_triton_installed(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(_library, "has_triton", lambda: False)
    _backend._choose.cache_clear()
    with (
        ak.use_backend("triton"),
        pytest.raises(RuntimeError, match=r"triton is not installed \(pip install 'alphakernels"),
    ):
        ops.sparsemax(X)


def test_no_kernel_for_the_device():
    assert "runs on the CPU, the tensors are on cuda" in _backend.reason_against(
        OPS["sparsemax"], "cpp", "cuda", torch.float32
    )
    assert "runs on cuda, the tensors are on mps" in _backend.reason_against(
        OPS["sparsemax"], "triton", "mps", torch.float32
    )
    assert ak.explain(ops.sparsemax, X.to("meta")).kernel == "reference"


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend must be one of auto, reference, cpp, triton, cuda, got 'cude'"):
        with ak.use_backend("cude"):
            pass


def test_backends_nest_and_are_put_back_after_an_error():
    with ak.use_backend("reference"):
        with pytest.raises(ZeroDivisionError), ak.use_backend("auto"):
            raise ZeroDivisionError
        assert _backend._requested == "reference"
    assert _backend._requested == "auto"


def test_explain_takes_modules_and_leaves_no_trace():
    module = nn.Sparsemax()
    x = X.clone().requires_grad_()
    assert ak.explain(module, x).op == "sparsemax"
    assert _backend._watch is None
    with pytest.raises(ValueError, match="called no alphakernels op"):
        ak.explain(torch.relu, X)
    with pytest.raises(TypeError):
        ak.explain(ops.sparsemax, X.long())
    assert _backend._watch is None


def test_the_reference_never_passes_through_the_dispatcher():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Namespaces(TorchDispatchMode):
        seen = set()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.seen.add(function.namespace)
            return function(*args, **(kwargs or {}))

    with ak.use_backend("reference"), Namespaces() as mode:
        ops.sparsemax(X)
        ops.glu_block(torch.randn(6, 4), virtual_batch_size=3)
    assert mode.seen == {"aten"}


@needs_library
def test_transforms_of_torch_func_take_the_reference():
    def loss(x):
        seen.append(str(ak.explain(ops.sparsemax, x)))
        return ops.sparsemax(x).square().sum()

    seen, x = [], torch.randn(3, 7, dtype=torch.float64)
    found = torch.func.grad(loss)(x)
    assert "torch.func's transforms" in seen[0]
    leaf = x.clone().requires_grad_()
    loss(leaf).backward()
    assert "sparsemax: cpp" in seen[1]
    torch.testing.assert_close(found, leaf.grad)
    with ak.use_backend("reference"):
        torch.testing.assert_close(torch.func.grad(lambda x: ops.sparsemax(x).square().sum())(x), found)
    with ak.use_backend("cpp"), pytest.raises(RuntimeError, match="sparsemax: the cpp kernel was asked for and cannot run: torch.func's"):
        torch.func.grad(lambda x: ops.sparsemax(x).sum())(x)
