"""Every Triton kernel compiles ahead of time for the GPUs it is meant for; no GPU is needed for that."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

COMPILE = """
import importlib, itertools, os, re, subprocess, sys, tempfile
import alphakernels.ops
from alphakernels.ops._library import OPS
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

capability = int(sys.argv[1])
shared_memory = 99 << 10  # bytes of a block: what the smallest of these GPUs has (8.6 and 8.9, which run code for 8.0)
cuobjdump = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")


# Bytes a thread spills from its registers; None without the tool that tells.
def stack(cubin):
    if not os.path.exists(cuobjdump):
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True).stdout
    found = re.search("STACK:([0-9]+)", usage)
    return found and int(found[1])


modules = sorted({op.triton for op in OPS.values() if op.triton})
assert modules
for module in modules:
    # Triton specialises on aligned tensors and on sizes that are multiples of 16. Ordinary training has both, which is another program than
    # the plain one; a module says which sizes where not all are.
    chosen = getattr(importlib.import_module(module), "AOT_ALIGNED", None)
    entries = importlib.import_module(module).AOT
    entries = entries(capability) if callable(entries) else entries
    programs = [True] if chosen is not None else [True, False]
    for (kernel, signature, constants, warps, *stages), aligned in itertools.product(entries, programs):
        names = kernel.arg_names
        signature = {name: signature.get(name, "constexpr") for name in names}
        constants = {(names.index(name),): value for name, value in constants.items()}
        sizes = chosen if chosen is not None else [name for name in names if signature[name] in ("i32", "i64")]
        attributes = {
            (i,): [["tt.divisibility", 16]]
            for i, name in enumerate(names)
            if aligned and (name in sizes or signature[name].startswith("*"))
        }
        compiled = triton.compile(
            ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": warps} | ({"num_stages": stages[0]} if stages else {}),
        )
        ptx = compiled.asm["ptx"]
        assert f".target sm_{capability}" in ptx, ptx[:400]
        assert len(compiled.asm["cubin"]) > 1000
        assert ".local" not in ptx, f"{module} {kernel.__name__} spills to local memory"
        assert compiled.metadata.shared <= shared_memory, f"{module} {kernel.__name__}: {compiled.metadata.shared} bytes of shared memory"
        spilled = stack(compiled.asm["cubin"])
        allowed = getattr(importlib.import_module(module), "AOT_SPILLS", 32)  # a few words are no loop's operands
        assert spilled is None or spilled <= allowed, f"{module} {kernel.__name__} spills {spilled} bytes a thread, {allowed} are allowed"
        print(module.split(".")[-2], kernel.__name__)
"""


CAPABILITIES = [80, 90, 100]


@pytest.fixture(scope="module")
def compilers(tmp_path_factory):
    """A process for each of the capabilities, all started at once: compiling takes one core."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    processes = {}
    for capability in CAPABILITIES:
        cache = {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp(f"sm_{capability}"))}
        command = [sys.executable, "-c", COMPILE, str(capability)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes[capability] = subprocess.Popen(command, env=environment | cache, **pipes)
    yield processes
    for process in processes.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_compile(capability: int, compilers) -> None:
    output, errors = compilers[capability].communicate()
    assert compilers[capability].returncode == 0, output[-2000:] + errors[-4000:]
    compiled = set(output.split("\n")) - {""}
    assert len(compiled) >= 15, compiled
