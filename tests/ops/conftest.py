"""The routes by which an op's kernels are reached: a contract test takes the fixture `route`, and runs on each."""

from __future__ import annotations

import os

import pytest
import torch

import alphakernels as ak
from alphakernels.ops import _library

# Triton reads TRITON_INTERPRET when it is imported: this process interprets from its start, or not at all.
# `test_contract_interpreted.py` starts one that does.
ROUTES = {"cpp": ("cpp", "cpu")}
if os.environ.get("TRITON_INTERPRET") == "1":
    ROUTES["interpreted"] = ("triton", "cpu")
elif torch.cuda.is_available():
    ROUTES["triton"] = ("triton", "cuda")
    if _library.compiled_cuda().problem is None:
        ROUTES["compiled"] = ("cuda", "cuda")


@pytest.fixture(params=ROUTES)
def route(request):
    """(backend, device), with the backend in force, computing float32 in float32."""
    backend, device = ROUTES[request.param]
    case = request.node.callspec.params.get("case")
    if backend == "triton" and case is not None and _library.OPS[case.op].triton is None:
        pytest.skip(f"{case.op} has no Triton kernel: CUDA C++ or PyTorch's own runs on a GPU")
    if backend == "cuda":
        if case is None or _library.OPS[case.op].cuda is None:
            pytest.skip("no CUDA C++ kernel")
    if backend == "cpp" and _library.compiled().problem:
        pytest.skip(_library.compiled().problem)
    recurrences = torch.backends.cudnn.rnn
    before, recurrences.fp32_precision = recurrences.fp32_precision, "ieee"
    with ak.use_backend(backend):
        yield backend, device
    recurrences.fp32_precision = before


@pytest.fixture(params=[name for name in ROUTES if ROUTES[name][0] == "triton"] or ["triton"])
def triton_device(request):
    """The device of the Triton kernels, with that backend in force."""
    if request.param not in ROUTES:
        pytest.skip("the Triton kernels run on a GPU, or on CPU tensors where TRITON_INTERPRET=1")
    backend, device = ROUTES[request.param]
    with ak.use_backend(backend):
        yield device


@pytest.fixture(scope="session")
def host_kernels(tmp_path_factory):
    """recurrent's CUDA kernels compiled for the CPU, and registered for its tensors."""
    import recurrent_on_host

    if recurrent_on_host.COMPILER is None:
        pytest.skip("no C++ compiler")
    return recurrent_on_host.build(tmp_path_factory.mktemp("host"))


@pytest.fixture
def sliding_windows():
    """sliding_windows(steps, columns, dtype): 150 windows [B, T, columns] of three histories, 50 of each side by side in time, as kernels find
    them that look for days which a window and the next have in common; with days that only some of the windows see alike."""

    def make(steps: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        histories = torch.randn(3, 50 + steps - 1, columns, dtype=dtype)
        x = histories.unfold(1, steps, 1).transpose(2, 3).reshape(150, steps, columns).clone()
        x[7, 3, 2] += 1
        x[20, 4:] = x[20, 3].clone()  # filled
        x[60:62, 5] = float("nan")
        return x

    return make
