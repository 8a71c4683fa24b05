"""The one torch.library namespace: how an op is defined, and which kernels exist for it.

An op is a schema, a fake implementation, an autograd formula and up to two kernels: C++, registered for the CPU key by the compiled
library, and a GPU's, registered here for the CUDA key: Triton's, imported only when it runs, or a host function that calls the CUDA
C++ of the second library. The PyTorch reference never passes through the dispatcher.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.util
import os
import struct
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.compiler.config

NAMESPACE = "alphakernels"
# Triton's kernels on CPU tensors, through its interpreter (TRITON_INTERPRET=1): the same definitions in a namespace of
# their own, because the CPU key of the first belongs to the C++ kernels.
INTERPRETED = "alphakernels_interpreted"
PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Formula:
    """Autograd of an op: `setup_context(ctx, inputs, output)` and `backward(ctx, ops, *grads)`, where `ops` is the
    namespace whose kernels run the backward op."""

    setup_context: Callable
    backward: Callable


@dataclass(frozen=True, eq=False)
class Op:
    """One operator of the torch.library namespace; `define` makes it."""

    name: str
    schema: str
    fake: Callable
    formula: Formula
    triton: str | None  # module of the Triton kernels; the host function has the op's name
    cuda: Callable | None  # host function of the CUDA C++ kernels
    cpp_dtypes: frozenset[torch.dtype]
    triton_dtypes: frozenset[torch.dtype]
    cuda_dtypes: frozenset[torch.dtype]

    def namespace(self, kernel: str, device: str) -> str:
        """Where the torch op is that runs `kernel` on `device`."""
        return INTERPRETED if kernel == "triton" and device == "cpu" else NAMESPACE

    def registered(self, namespace: str):
        """The torch op, as `register` registered it."""
        return getattr(getattr(torch.ops, namespace), self.name)


OPS: dict[str, Op] = {}


def _once_only(name: str) -> Formula:
    """Autograd of a backward op that has no derivative of its own: an error, where torch alone would leave the term out."""

    def backward(ctx, ops, *grads):
        raise RuntimeError(f"{name} cannot be differentiated again: take second derivatives under alphakernels.use_backend('reference')")

    return Formula(lambda ctx, inputs, output: None, backward)


def define(
    name: str,
    schema: str,
    *,
    fake: Callable,
    formula: Formula | None = None,
    triton: str | None = None,
    cuda: Callable | None = None,
    cpp_dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64),
    triton_dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16),
    cuda_dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16),
) -> Op:
    """Defines `alphakernels::name` with its fake implementation, its autograd and its kernel for a GPU, of Triton or of CUDA C++;
    without a formula it cannot be differentiated."""
    dtypes = (frozenset(cpp_dtypes), frozenset(triton_dtypes), frozenset(cuda_dtypes))
    op = Op(name, schema, fake, formula or _once_only(name), triton, cuda, *dtypes)
    OPS[name] = op
    register(op, NAMESPACE, gpu_key="CUDA")
    return op


def register(op: Op, namespace: str, gpu_key: str) -> None:
    """Defines the op in a namespace, its GPU's kernel registered for the key `gpu_key`."""
    qualified = f"{namespace}::{op.name}"
    torch.library.define(qualified, op.schema)
    torch.library.register_fake(qualified, op.fake)
    ops = getattr(torch.ops, namespace)
    torch.library.register_autograd(
        qualified,
        lambda ctx, *grads: op.formula.backward(ctx, ops, *grads),
        setup_context=lambda ctx, inputs, output: op.formula.setup_context(ctx, inputs, output),
    )
    if op.cuda is not None:
        torch.library.impl(qualified, gpu_key)(lambda *args: _launch(op.cuda, args))
    elif op.triton is not None:
        torch.library.impl(qualified, gpu_key)(lambda *args: _launch(triton_function(op), args))


@cache
def eager(op: Op, namespace: str) -> Callable:
    """The op with its autograd for eager mode. What `register` registers takes arguments apart and puts them together again, once a call and
    once a gradient, and passes every op of a backward pass through the autograd layer too: as long as a small op's kernel runs.
    """
    ops = getattr(torch.ops, namespace)
    call = getattr(ops, op.name).default
    lists = [i for i, argument in enumerate(call._schema.arguments) if isinstance(argument.type, torch.ListType)]

    def nested(flat: Sequence, counts: tuple[int, ...]) -> tuple:
        """Puts lists of `counts` elements together again."""
        args = list(flat)
        for i, count in zip(lists, counts, strict=True):
            args[i : i + count] = [args[i : i + count]]
        return tuple(args)

    def forward(ctx, *flat):
        *flat, counts = flat
        args = nested(flat, counts)
        with torch._C._AutoDispatchBelowAutograd():
            output = call(*args)
        ctx.needs = nested(ctx.needs_input_grad[:-1], counts)
        op.formula.setup_context(ctx, args, output)
        return output

    def backward(ctx, *grads):
        ctx.needs_input_grad = ctx.needs
        with nullcontext() if torch.is_grad_enabled() else torch._C._AutoDispatchBelowAutograd():
            gradients = op.formula.backward(ctx, ops, *grads)
        gradients = list(gradients) if isinstance(gradients, tuple) else [gradients]
        for i in reversed(lists):
            gradients[i : i + 1] = gradients[i]
        return *gradients, None

    function = type(op.name, (torch.autograd.Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)})

    def apply(*args):
        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*args)):  # nothing to record
            with torch._C._AutoDispatchBelowAutograd():
                return call(*args)
        flat = list(args)
        for i in reversed(lists):
            flat[i : i + 1] = args[i]
        return function.apply(*flat, tuple(len(args[i]) for i in lists))

    return apply


def _launch(function: Callable, args: tuple):
    """Calls a host function of GPU kernels on the GPU of its tensors, since Triton launches on the current one whatever the tensors are
    on; and without autocast, which has had its say and would cast the products between the kernels."""
    tensor = next(arg for arg in args if isinstance(arg, torch.Tensor))
    kind = tensor.device.type
    with torch.cuda.device_of(tensor), torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
        return function(*args)


@cache
def triton_function(op: Op) -> Callable:
    """The host function of an op's Triton kernel; this is where triton is first imported."""
    return getattr(importlib.import_module(op.triton), op.name)


@cache
def ensure_interpreted() -> None:
    """Registers the Triton kernels for CPU tensors, as Triton's interpreter runs them."""
    for op in OPS.values():
        if op.triton is not None:
            register(op, INTERPRETED, gpu_key="CPU")


def interpreting() -> bool:
    """Whether Triton's interpreter is on."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def has_triton() -> bool:
    """Whether triton is installed, found out without importing it."""
    return importlib.util.find_spec("triton") is not None


@dataclass(frozen=True)
class Compiled:
    """The compiled library: loaded, or the reason why not."""

    path: Path | None
    isa: str | None
    problem: str | None


def _cut_short(path: Path) -> bool:
    """Whether a 64-bit ELF file ends before its section table: the dynamic loader would kill the process over it."""
    with path.open("rb") as file:
        head = file.read(64)
    if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
        return False
    (table,), (size, count) = struct.unpack_from("<Q", head, 40), struct.unpack_from("<HH", head, 58)
    return path.stat().st_size < table + size * count


@cache
def compiled() -> Compiled:
    """Loads the compiled library once. Where that fails, one warning says so and the reference runs."""
    paths = sorted(p for suffix in ("so", "pyd", "dylib") for p in PACKAGE.glob(f"_C.*{suffix}"))
    if not paths:
        problem = (
            "the compiled library was not built (no compiler at install time, or ALPHAKERNELS_BUILD=none); "
            "`pip install --no-build-isolation -v` of the source shows the compiler's messages"
        )
        return _without_library(None, problem)
    try:
        if _cut_short(paths[0]):
            raise OSError("the file is cut short")
        torch.ops.load_library(str(paths[0]))
        query = ctypes.CDLL(str(paths[0])).alphakernels_isa
        query.restype = ctypes.c_char_p
        return Compiled(paths[0], query().decode(), None)
    except (OSError, AttributeError) as error:
        return _without_library(paths[0], f"the compiled library {paths[0].name} cannot be loaded: {error}")


def _without_library(path: Path | None, problem: str) -> Compiled:
    warnings.warn(f"alphakernels runs on its PyTorch reference: {problem}", RuntimeWarning, stacklevel=2)
    return Compiled(path, None, problem)


def empty_cache() -> int:
    """Gives memory that the CPU kernels keep for the next training step back to the system, as `torch.cuda.empty_cache` does on a GPU.

    On Linux, what a step keeps for its backward pass is handed on to the next step where it is larger than 32 MB: fresh pages cost 10
    to 40% of a step. It is never more than was in use at once. `fit` calls this when it ends; call it after a training loop of your
    own, or start Python with ALPHAKERNELS_KEEP_MEMORY=0 to keep nothing.

    Returns:
        How many bytes were given back. Tensors in use stay as they are.
    """
    library = compiled()
    if library.problem is not None:
        return 0
    release = ctypes.CDLL(str(library.path)).alphakernels_release_blocks
    release.restype = ctypes.c_int64
    return release()


@cache
def compiled_cuda() -> Compiled:
    """Loads the library of CUDA C++ kernels once. Without it a GPU runs Triton's kernels and torch's own."""
    paths = sorted(PACKAGE.glob("_C_cuda.*so"))
    if not paths:
        return Compiled(None, None, "the CUDA library was not built (it is where nvcc and a CUDA build of PyTorch are found at install time)")
    if torch.version.cuda is None:
        return Compiled(paths[0], None, "this is a build of PyTorch without CUDA")
    try:
        if _cut_short(paths[0]):
            raise OSError("the file is cut short")
        torch.ops.load_library(str(paths[0]))
        _shared_bytes(paths[0])
        version = ctypes.CDLL(str(paths[0])).alphakernels_cuda_version
        built, driver = version(0), version(1)
        if built // 1000 > driver // 1000:  # the kernels of a major version run under its drivers and later ones
            has = f"the driver runs CUDA {driver // 1000}.{driver % 1000 // 10}" if driver else "no driver was found"
            return Compiled(paths[0], None, f"the CUDA library was built by nvcc {built // 1000}, {has}: update it, or build by an older nvcc")
        return Compiled(paths[0], None, None)
    except (OSError, AttributeError) as error:
        return Compiled(paths[0], None, f"the CUDA library {paths[0].name} cannot be loaded: {error}")


@cache
def _shared_bytes(path: Path) -> Callable:
    query = ctypes.CDLL(str(path)).alphakernels_recurrent_shared_bytes
    query.restype, query.argtypes = ctypes.c_int64, (ctypes.c_int32, ctypes.c_int32, ctypes.c_int64, ctypes.c_int32)
    return query


def cuda_shared_bytes(lstm: bool, precision: int, hidden: int, backward: bool) -> int:
    """Bytes of shared memory that a block of the recurrence needs; -1 where there is no kernel for the hidden size."""
    return _shared_bytes(compiled_cuda().path)(lstm, precision, hidden, backward)


def cuda_runs_on(device: int) -> bool:
    """Whether the CUDA library holds code for this device."""
    with torch.cuda.device(device):
        return bool(ctypes.CDLL(str(compiled_cuda().path)).alphakernels_cuda_runs_here())


@cache
def has_cpp(name: str) -> bool:
    """Whether the loaded library holds a CPU kernel for the op."""
    return compiled().problem is None and torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", "CPU")


def tag_compile_caches() -> None:
    """Keeps torch.compile's caches on disk apart from those of other versions of this package: a graph stored there calls the ops it
    was made of, backward ops and their arguments too, and its key knows the names of the forward ops alone."""
    digest = hashlib.sha256()
    for path in sorted((PACKAGE / "ops").glob("*/op.py")):
        digest.update(path.read_bytes())
    torch.compiler.config.cache_key_tag += f"alphakernels-{digest.hexdigest()[:16]}"
