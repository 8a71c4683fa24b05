"""Every Triton kernel compiles ahead of time for the GPUs it is meant for; no GPU is needed for that."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

COMPILE = """
import importlib, sys
import alphakernels.ops
from alphakernels.ops._library import OPS
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

capability = int(sys.argv[1])
modules = sorted({op.triton for op in OPS.values() if op.triton})
assert modules
for module in modules:
    for kernel, signature, constants, warps in importlib.import_module(module).AOT:
        names = kernel.arg_names
        signature = {name: signature.get(name, "constexpr") for name in names}
        constants = {(names.index(name),): value for name, value in constants.items()}
        compiled = triton.compile(
            ASTSource(fn=kernel, signature=signature, constexprs=constants),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": warps},
        )
        ptx = compiled.asm["ptx"]
        assert f".target sm_{capability}" in ptx, ptx[:400]
        assert len(compiled.asm["cubin"]) > 1000
        assert ".local" not in ptx, f"{module} {kernel.__name__} spills to local memory"
        assert compiled.metadata.shared <= 96 << 10, f"{module} {kernel.__name__}: {compiled.metadata.shared} bytes of shared memory"
        print(module.split(".")[-2], kernel.__name__)
"""


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels_compile(capability: int, tmp_path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(capability)],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    compiled = set(done.stdout.split("\n")) - {""}
    assert len(compiled) >= 15, compiled
