"""Which kernel runs a call: chosen once per call, by one function, for automatic choice, explicit request and `explain` alike.

A kernel that cannot run gives its reason; automatic choice takes the first kernel without one, an explicit request raises it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch

from . import _library
from ._library import Op

BACKENDS = ("auto", "reference", "cpp", "triton", "cuda")
_NAMES = {"triton": "Triton", "cuda": "CUDA"}

_requested = "auto"


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Runs the block on one backend, for every op and in the whole process.

    Args:
        backend: "auto" (the fastest kernel that can run), "reference" (plain PyTorch: any dtype, double backward, export),
            "cpp", "triton" or "cuda" (CUDA C++). An op that cannot run on the backend asked for raises and gives the reason; on a GPU
            an op without a kernel of the kind asked for runs PyTorch's own.

    Raises:
        ValueError: `backend` is not one of these.
    """
    global _requested
    if backend not in BACKENDS:
        raise ValueError(f"use_backend: backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "triton" and _library.interpreting():
        _library.ensure_interpreted()
    before, _requested = _requested, backend
    try:
        yield
    finally:
        _requested = before


@dataclass(frozen=True)
class Explanation:
    """What runs a call: `kernel`, and for every kernel passed over the reason why."""

    op: str
    kernel: str
    detail: str
    reasons: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.op}: {self.kernel} ({self.detail})"]
        return "\n".join(lines + [f"  not {kernel}: {reason}" for kernel, reason in self.reasons.items()])


def reason_against(op: Op, kernel: str, device: str, dtype: torch.dtype) -> str | None:
    """Why `kernel` cannot run `op` on tensors of this device and dtype; None where it can."""
    if kernel == "cpp":
        if device != "cpu":
            return f"the C++ kernel runs on the CPU, the tensors are on {device}"
        if _library.compiled().problem is not None:
            return _library.compiled().problem
        if not _library.has_cpp(op.name):
            return "the compiled library has no kernel for this op"
        if dtype not in op.cpp_dtypes:
            return f"the C++ kernel takes {_names(op.cpp_dtypes)}, got {_name(dtype)}"
    if kernel == "triton":
        if op.triton is None:
            return "the op has no Triton kernel"
        if device == "cpu" and not _library.interpreting():
            return "the Triton kernel runs on a GPU (on CPU tensors only in its interpreter, TRITON_INTERPRET=1)"
        if device not in ("cpu", "cuda"):
            return f"the Triton kernel runs on cuda, the tensors are on {device}"
        if not _library.has_triton():
            return "triton is not installed (pip install 'alphakernels[triton]')"
        if dtype not in op.triton_dtypes:
            return f"the Triton kernel takes {_names(op.triton_dtypes)}, got {_name(dtype)}"
    if kernel == "cuda":
        if op.cuda is None:
            return "the op has no CUDA C++ kernel"
        if device != "cuda":
            return f"the CUDA kernel runs on a GPU, the tensors are on {device}"
        if _library.compiled_cuda().problem is not None:
            return _library.compiled_cuda().problem
        if dtype not in op.cuda_dtypes:
            return f"the CUDA kernel takes {_names(op.cuda_dtypes)}, got {_name(dtype)}"
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _names(dtypes: frozenset[torch.dtype]) -> str:
    return ", ".join(sorted(_name(d) for d in dtypes))


@cache
def _choose(op: Op, device: str, dtype: torch.dtype, requested: str) -> Explanation:
    reasons = {}
    candidates = ("cuda", "triton", "cpp") if device == "cuda" else ("cpp", "triton", "cuda")
    for kernel in candidates:
        if kernel == "cuda" and op.cuda is None and requested != "cuda":
            continue
        if requested not in ("auto", kernel):
            reasons[kernel] = f"use_backend({requested!r}) is in force"
            continue
        if requested == "auto" and kernel != "cpp" and device == "cpu":
            reasons[kernel] = f"the {_NAMES[kernel]} kernel runs on a GPU"
            continue
        reason = reason_against(op, kernel, device, dtype)
        if requested == kernel and (kernel, None) in (("triton", op.triton), ("cuda", op.cuda)):
            requested = "reference"  # PyTorch's own kernel is the GPU's: asking for Triton or CUDA means the ops that have one
        if reason is None:
            detail = f"{_library.compiled().isa}, {_name(dtype)}" if kernel == "cpp" else f"{device}, {_name(dtype)}"
            return Explanation(op.name, kernel, detail, reasons)
        if requested == kernel:
            raise RuntimeError(f"{op.name}: the {kernel} kernel was asked for and cannot run: {reason}")
        reasons[kernel] = reason
    return Explanation(op.name, "reference", f"plain PyTorch on {device}, {_name(dtype)}", reasons)


def _kernel(name: str, device: str, dtype: torch.dtype, requested: str) -> str:
    return _choose(_library.OPS[name], device, dtype, requested).kernel


# torch.compile cannot trace the search for the library, and need not. This is what torch.compiler.assume_constant_result sets;
# calling it would import torch._dynamo with this package.
_kernel._dynamo_marked_constant = True


def _transformed() -> str | None:
    """Why a kernel cannot run inside of torch.func's grad, vmap and the like, which take PyTorch's own operators apart; None outside."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is None:
        return None
    return "torch.func's transforms go through PyTorch's own operators"


def choose(op: Op, tensor: torch.Tensor) -> str:
    """The kernel that runs `op` on tensors like this one: "cpp", "triton", or "reference"."""
    return _chosen(op, tensor, _transformed())


def _chosen(op: Op, tensor: torch.Tensor, transformed: str | None) -> str:
    if _requested == "reference" or transformed is not None:
        return "reference"
    return _kernel(op.name, tensor.device.type, tensor.dtype, _requested)


def automatic() -> bool:
    """Whether the fastest kernel is chosen here and now: none is asked for, and nothing traces or transforms the call."""
    return _requested == "auto" and not torch.compiler.is_compiling() and _transformed() is None


_watch: list[Explanation] | None = None


def run(
    op: Op,
    reference: Callable,
    tensor: torch.Tensor,
    *args,
    limit: Callable[[str], str | None] | None = None,
    torch_is_better: Callable[[], str | None] | None = None,
    native: Callable | None = None,
):
    """Runs `op` on `args` by the kernel chosen for `tensor`: the reference directly, a kernel through the dispatcher.

    `limit`: says why a kernel ("cpp", "triton", "cuda") cannot run a call of these sizes, or None.
    `torch_is_better`: for an op that PyTorch has a kernel of its own for, says why that suits this call better, or None; then
    automatic choice takes it. Not asked under torch.compile and export, where it would tie the graph to the sizes traced.
    `native`: that kernel, where it is not the reference; automatic choice then takes it in place of the reference.
    """
    compiling = torch.compiler.is_compiling()
    better = torch_is_better() if torch_is_better is not None and _requested == "auto" and not compiling else None
    transformed = _transformed()
    kernel = _chosen(op, tensor, transformed)
    beyond = limit(kernel) if limit is not None and kernel != "reference" else transformed
    if beyond is not None and _requested not in ("auto", "reference"):
        raise RuntimeError(f"{op.name}: the {_requested} kernel was asked for and cannot run: {beyond}")
    better = beyond or better
    kernel = kernel if better is None else "reference"
    by_torch = kernel == "reference" and native is not None and _requested == "auto" and transformed is None
    if _watch is not None:
        _watch.append(_explanation(op, tensor, better, by_torch))
    if by_torch:
        return native(*args)
    if kernel == "reference":
        return reference(*args)
    namespace = op.namespace(kernel, tensor.device.type)
    if compiling:
        return op.registered(namespace)(*args)
    return _library.eager(op, namespace)(*args)


def _explanation(op: Op, tensor: torch.Tensor, torch_is_better: str | None, by_torch: bool) -> Explanation:
    chosen = _choose(op, tensor.device.type, tensor.dtype, _requested)
    reasons = chosen.reasons
    if torch_is_better is not None and chosen.kernel != "reference":
        reasons = {chosen.kernel: torch_is_better, **reasons}
    elif not by_torch:
        return chosen
    return _torchs(op.name, "torch" if by_torch else "reference", tensor, reasons)


def _torchs(name: str, kernel: str, tensor: torch.Tensor, reasons: dict[str, str]) -> Explanation:
    return Explanation(name, kernel, f"PyTorch's own kernel on {tensor.device.type}, {_name(tensor.dtype)}", reasons)


def watch_torch(name: str, tensor: torch.Tensor, reason: str) -> None:
    """Tells `explain` that a module calls PyTorch's own in place of the op `name`, and why."""
    if _watch is not None:
        _watch.append(_torchs(name, "torch", tensor, {"cpp": reason}))


def explain(function: Callable, *args, **kwargs) -> Explanation:
    """Runs `function(*args, **kwargs)`, an op of `alphakernels.ops` or a module that calls one, and says which kernel ran and
    why not another. Under torch.no_grad that is the kernel of inference, which need not be the one of training.

    Returns:
        The `Explanation` of the call; where several ops were called, of the first.

    Raises:
        ValueError: the function called no alphakernels op.
    """
    global _watch
    before, _watch = _watch, []
    try:
        function(*args, **kwargs)
        seen = _watch
    finally:
        _watch = before
    if not seen:
        raise ValueError(f"explain: {getattr(function, '__name__', function)!r} called no alphakernels op")
    return seen[0]
