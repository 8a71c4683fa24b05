"""Kernels that are wrong, for the machine to find, and one that is right: `python -m ptx.run_wrong_kernels LIBRARY` prints as JSON what it
finds in each. Two are right until a statement is taken out of their PTX, where Triton would not leave it out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import triton
import triton.language as tl
from triton.backends.nvidia.compiler import CUDABackend

from .driver import install
from .machine import Machine

ELEMENTS, BLOCK = 200, 256  # n: x has 16 n elements and its storage one more, y has 2 n


@triton.jit
def right(x, y, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, i < n, 0.0), i < n)
    tl.debug_barrier()
    tl.store(y + n + i, tl.load(y + (n - 1 - i), i < n, 0.0), i < n)


@triton.jit
def missing_barrier(x, y, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, i < n, 0.0), i < n)
    tl.store(y + n + i, tl.load(y + (n - 1 - i), i < n, 0.0), i < n)


@triton.jit
def masked_load_without_other(x, y, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y, tl.sum(tl.load(x + i, i < n), 0))


@triton.jit
def load_out_of_bounds(x, y, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(y + n + i, i <= n, 0.0), i < n)


@triton.jit
def store_out_of_bounds(x, y, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + n + i, tl.load(x + i, i < n, 0.0), i <= n)


@triton.jit
def store_past_the_view(x, y, n, BLOCK: tl.constexpr):
    tl.store(x + 16 * n, 1.0)


@triton.jit
def misaligned_store(x, y, n, BLOCK: tl.constexpr):
    halves = y.to(tl.pointer_type(tl.int16)) + 1
    tl.store(halves.to(tl.pointer_type(tl.float32)), 1.0)


@triton.jit
def different_values_at_one_address(x, y, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, i < n, 0.0) + tl.program_id(0), i < n)


@triton.jit
def unknown_instruction(x, y, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.atomic_add(y + i, 1.0, i < n)


@triton.jit
def sum_over_warps(x, y, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y, tl.sum(tl.load(x + i, i < n, 0.0), 0))


@triton.jit
def products_in_a_loop(x, y, n, BLOCK: tl.constexpr):
    i, j = tl.arange(0, 16)[:, None], tl.arange(0, 16)[None, :]
    total = tl.zeros((16, 16), tl.float32)
    for begin in range(0, n - 16, 16):
        one = tl.load(x + (begin + i) * 16 + j)
        other = tl.load(x + (begin + 8 + i) * 16 + j)
        total = tl.dot(one, other, total)
    tl.store(y + i * 16 + j, total)


# Each with the statement that is taken out of its PTX.
KERNELS = {
    right: None,
    missing_barrier: None,
    masked_load_without_other: None,
    load_out_of_bounds: None,
    store_out_of_bounds: None,
    store_past_the_view: None,
    misaligned_store: None,
    different_values_at_one_address: None,
    unknown_instruction: None,
    sum_over_warps: "bar.sync",
    products_in_a_loop: "cp.async.wait_group",
}

if __name__ == "__main__":
    record = install(Machine(Path(sys.argv[1])))
    found = {}
    for kernel, left_out in KERNELS.items():
        if left_out is not None:

            def make(self, source, *more, left_out=left_out):
                assert left_out in source
                return "\n".join(line for line in source.split("\n") if left_out not in line).encode()

            CUDABackend.make_cubin = make
        x, y = torch.arange(ELEMENTS * 16.0 + 1)[:-1], torch.zeros(2 * ELEMENTS)
        programs = 2 if kernel is different_values_at_one_address else 1
        try:
            kernel[(programs,)](x, y, ELEMENTS, BLOCK=BLOCK)
            found[kernel.__name__] = sorted({finding.kind for finding in record.findings[f"{__name__}.{kernel.__name__}"]})
        except Exception as error:
            found[kernel.__name__] = [f"{type(error).__name__}: {error}"]
    print(json.dumps(found))
