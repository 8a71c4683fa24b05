"""The CUDA recurrence on the CPU: csrc/cuda's kernels, compiled by the machine's C++ compiler with the block of threads that stands
in for a GPU's (csrc/cuda/host_block.h), behind the torch ops that the host code in ops/recurrent/cuda.py calls."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch

from alphakernels.ops import _library
from alphakernels.ops._library import OPS
from alphakernels.ops.recurrent import cuda

CSRC = Path(__file__).resolve().parents[2] / "csrc"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
NAMESPACE = "alphakernels_on_host"

_i64, _pointer = ctypes.c_int64, ctypes.c_void_p


class Sequence(ctypes.Structure):
    _fields_ = [("data", _pointer), ("step", _i64), ("row", _i64)]


def _structure(*names: str, sequences: tuple[str, ...]) -> type[ctypes.Structure]:
    """The arguments of csrc/cuda/recurrent.h: sizes, then pointers and sequences in their order."""
    fields = [(name, Sequence if name in sequences else _pointer) for name in names]
    sizes = [(name, _i64) for name in ("steps", "batch", "hidden")]
    return type("Arguments", (ctypes.Structure,), {"_fields_": [*sizes, *fields]})


Forward = _structure(
    *("sums", "weight", "bias", "h0", "c0", "output", "h_n", "c_n", "gates", "cells"),
    sequences=("sums", "output"),
)
Backward = _structure(
    *("grad_output", "grad_h_n", "grad_c_n", "weight", "h0", "c0", "gates", "cells", "output", "grads", "dh0", "dc0", "bias_grads"),
    sequences=("grad_output", "output"),
)


class Dropout(ctypes.Structure):
    _fields_ = [
        *(("from", _pointer), ("to", _pointer), ("rows", _i64), ("columns", _i64), ("stream", _i64)),
        *(("seed", _pointer), ("threshold", ctypes.c_uint64), ("scale", ctypes.c_float)),
    ]


def _place(t: torch.Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def _sequence(t: torch.Tensor | None) -> Sequence:
    if t is None:
        return Sequence(None, 0, 0)
    assert t.dim() == 3 and (t.stride(2) == 1 or t.shape[2] == 1)
    return Sequence(t.data_ptr(), t.stride(0), t.stride(1))


def _dense(*tensors: torch.Tensor | None) -> None:
    assert all(t is None or t.is_contiguous() for t in tensors)


def _run(function, *arguments) -> None:
    function.restype = ctypes.c_char_p
    message = function(*arguments).decode()
    if message:
        raise RuntimeError(message)


@cache
def build(folder: Path) -> ctypes.CDLL:
    """Compiles the kernels and registers them for CPU tensors; the library."""
    path = folder / "recurrent_on_host.so"
    command = [COMPILER, "-std=c++17", "-O1", "-g0", "-fPIC", "-shared", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-I", str(CSRC)]
    subprocess.run([*command, str(CSRC / "cuda" / "recurrent_host.cpp"), "-o", str(path)], check=True)
    library = ctypes.CDLL(str(path))

    def precision(like: torch.Tensor, tf32: bool) -> int:
        return {torch.bfloat16: 2, torch.float16: 3}.get(like.dtype, int(tf32))

    def layer(sums, weight, bias, h0, c0, output, h_n, c_n, gates, cells, tf32):
        _dense(weight, bias, h0, c0, h_n, c_n, gates, cells)
        dense = {"weight": weight, "bias": bias, "h0": h0, "c0": c0, "h_n": h_n, "c_n": c_n, "gates": gates, "cells": cells}
        steps, batch, _ = sums.shape
        arguments = Forward(steps, batch, weight.shape[1], sums=_sequence(sums), output=_sequence(output))
        for name, t in dense.items():
            setattr(arguments, name, _place(t))
        lstm = weight.shape[0] == 4 * weight.shape[1]
        _run(library.forward, int(lstm), precision(sums, tf32), ctypes.byref(arguments))

    def layer_backward(
        grad_output, grad_h_n, grad_c_n, weight, h0, c0, output, gates, cells, grads, dh0, dc0, bias_grads, tf32
    ):  # fmt: skip
        dense = {"grad_h_n": grad_h_n, "grad_c_n": grad_c_n, "weight": weight, "h0": h0, "c0": c0, "gates": gates, "cells": cells}
        dense |= {"grads": grads, "dh0": dh0, "dc0": dc0, "bias_grads": bias_grads}
        _dense(*dense.values())
        steps, batch, _ = gates.shape
        assert bias_grads.shape == (-(-batch // 16) * 8, gates.shape[2]) and bias_grads.dtype == torch.float32
        arguments = Backward(steps, batch, weight.shape[1], grad_output=_sequence(grad_output), output=_sequence(output))
        for name, t in dense.items():
            setattr(arguments, name, _place(t))
        lstm = weight.shape[0] == 4 * weight.shape[1]
        _run(library.backward, int(lstm), precision(gates, tf32), ctypes.byref(arguments))

    def dropout_rows(rows, to, seed, stream, p):
        _dense(rows, to)
        columns = rows.shape[-1]
        scale = 1 / (1 - p) if p < 1 else 0.0
        arguments = Dropout(rows.data_ptr(), to.data_ptr(), rows.numel() // columns, columns, stream, seed.data_ptr(), round(p * 2**32), scale)
        _run(library.dropout, precision(rows, False), ctypes.byref(arguments))

    for name, function in (("recurrent_layer", layer), ("recurrent_layer_backward", layer_backward), ("dropout_rows", dropout_rows)):
        torch.library.impl(f"{_library.NAMESPACE}::{name}", "CPU")(function)
    for name in ("recurrent", "recurrent_backward"):
        _library.register(OPS[name], NAMESPACE, gpu_key="CPU")
    return library


def run(op, reference, tensor, *arguments, **options):
    """In the place of `_backend.run`: every call on the kernels compiled here."""
    return getattr(getattr(torch.ops, NAMESPACE), op.name)(*arguments)


__all__ = ["COMPILER", "CSRC", "NAMESPACE", "build", "cuda", "run"]
