"""What is installed, and which kernel runs where, and why."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

import alphakernels
from alphakernels.ops import _backend, _library

VARIABLES = ("ALPHAKERNELS_ISA", "ALPHAKERNELS_BUILD", "ALPHAKERNELS_KEEP_MEMORY", "TRITON_INTERPRET", "OMP_NUM_THREADS")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _rows(device: str) -> list[tuple[str, str, str, str]]:
    """(op, device, kernel, detail or reason) of every op on float32 tensors, or on what its kernel takes where that is not among it."""
    rows = []
    for name, op in sorted(_library.OPS.items()):
        if name.endswith("_backward"):
            continue
        dtype = torch.float32 if torch.float32 in op.cpp_dtypes else next(iter(op.cpp_dtypes))
        choice = _backend._choose(op, device, dtype, "auto")
        because = choice.detail
        if choice.kernel == "reference":
            because = "; ".join(f"{kernel}: {reason}" for kernel, reason in choice.reasons.items())
        rows.append((name, device, choice.kernel, because))
    return rows


def report() -> str:
    """The text that `alphakernels doctor` prints."""
    compiled = _library.compiled()
    lines = [
        f"alphakernels {alphakernels.__version__}   python {platform.python_version()}   {platform.platform()}",
        "   ".join(f"{package} {_version(package)}" for package in ("torch", "numpy", "pandas", "triton")),
        f"processor  {torch.backends.cpu.get_cpu_capability()} (as torch sees it), {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        f"library    {compiled.path or 'none'}" + (f", runs on {compiled.isa}" if compiled.isa else ""),
    ]
    if compiled.problem:
        lines.append(f"           {compiled.problem}")
    cuda = _library.compiled_cuda()
    lines.append(f"           {cuda.problem or f'{cuda.path}, CUDA C++ for GPUs'}")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(i)
            lines.append(f"device     cuda:{i} {torch.cuda.get_device_name(i)}, compute capability {major}.{minor}")
    else:
        lines.append("device     cpu only (torch sees no CUDA device)")
    lines += [f"variable   {name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    table = [("op", "device", "kernel", "detail"), *_rows("cpu"), *_rows("cuda")]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    lines += ["", *("  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in table)]
    return "\n".join(lines)
