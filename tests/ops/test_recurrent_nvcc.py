"""recurrent's CUDA kernels as nvcc compiles them: without spills, as recorded, into a library that registers itself."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import recurrent_compiled as compiled
import recurrent_on_host as host
import torch

from alphakernels.ops.recurrent import cuda

pytestmark = pytest.mark.skipif(compiled.NVCC is None or host.COMPILER is None, reason="nvcc or a C++ compiler is not installed")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """kernels(arch): the object file and ptxas's report; all architectures are compiled at once, when the first is asked for."""
    folder = tmp_path_factory.mktemp("nvcc")

    def compiled_for(arch: int) -> tuple[Path, str]:
        target = folder / f"recurrent_{arch}.o"
        return target, compiled.compile_kernels(arch, target)

    with ThreadPoolExecutor() as pool:
        made = {arch: pool.submit(compiled_for, arch) for arch in compiled.ARCHITECTURES}
        yield lambda arch: made[arch].result()


@pytest.mark.parametrize("arch", compiled.ARCHITECTURES)
def test_kernels_compile_without_spills(arch, kernels, host_kernels):
    rows = compiled.table(arch, kernels(arch)[1], host_kernels)
    names = [row["kernel"] for row in rows]
    assert len(set(names)) == len(names) == 2 * 2 * 4 * 2 * 3 + 3  # cells, directions, precisions, extents, kinds of rows; and dropout
    assert [row for row in rows if row["spilled_bytes"] != "0"] == []
    assert all(int(row["shared_bytes"]) <= 227 << 10 for row in rows if not row["kernel"].startswith("lstm") or "fp32" not in row["kernel"])

    def ours(table):  # how many registers are used is nvcc's: another version's may differ
        return [(row["kernel"], row["shared_bytes"]) for row in table]

    assert ours(rows) == ours(compiled.recorded(arch)), "the kernels changed: run tests/ops/recurrent_compiled.py"


def symbols(file: Path, which: str) -> set[str]:
    lines = subprocess.run(["nm", "-D", f"--{which}-only", str(file)], capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[-1].split("@")[0] for line in lines}


def test_the_library_registers_itself(kernels, tmp_path):
    """Compiled, linked and loaded beside a torch without CUDA; only the stream, which such a torch cannot give, is stood in for."""
    torch_home = Path(torch.__file__).parent
    binding, stand_in, library = tmp_path / "binding.o", tmp_path / "stand_in.so", tmp_path / "_C_cuda.so"
    flags = ["-std=c++17", "-O1", "-Wall", "-Werror", "-fPIC", "-fvisibility=hidden", "-DUSE_CUDA", f"-I{torch_home / 'include'}"]
    flags += ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DPy_LIMITED_API=0x030a0000"]
    subprocess.run([host.COMPILER, *flags, "-c", str(host.CSRC / "bindings" / "cuda" / "recurrent.cpp"), "-o", str(binding)], check=True)
    link = [compiled.NVCC, "-shared", str(kernels(90)[0]), str(binding), f"-L{torch_home / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    subprocess.run([*link, "-o", str(library)], check=True)

    # Of torch it needs the stable ABI alone, and of a CUDA torch one function more.
    needed = {name for name in symbols(library, "undefined") if "torch" in name or "c10" in name}
    assert all(name.startswith(("aoti_torch_", "torch_")) for name in needed)
    if torch.version.cuda is None:
        assert needed - symbols(torch_home / "lib" / "libtorch_cpu.so", "defined") == {"aoti_torch_get_current_cuda_stream"}

    code = "int aoti_torch_get_current_cuda_stream(int device, void** stream) { *stream = 0; return device; }"
    command = [host.COMPILER, "-shared", "-fPIC", "-x", "c++", "-", "-o", str(stand_in)]
    subprocess.run(command, input=f'extern "C" {code}', text=True, check=True)
    done = subprocess.run([sys.executable, "-c", LOAD, str(stand_in), str(library)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *refusals, shared_bytes = done.stdout.splitlines()
    assert refusals == [f"{op}: the first argument must be a CUDA tensor" for op in cuda.KERNELS]
    assert int(shared_bytes) > 0


# Calls the kernels of the CUDA key with tensors of the CPU: the arguments arrive, and the first check refuses them.
LOAD = """
import ctypes, sys, torch
ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
from alphakernels.ops import _library, recurrent
torch.ops.load_library(sys.argv[2])
x, w, h = torch.zeros(2, 3, 12), torch.zeros(12, 4), torch.zeros(3, 4)
kernels = torch.ops.alphakernels
for op, arguments in (
    (kernels.recurrent_layer, (x, w, None, None, None, None, h, None, None, None, True)),
    (kernels.recurrent_layer_backward, (None, None, None, w, None, None, x, x, None, x, h, None, x, True)),
    (kernels.dropout_rows, (x, x, x, 2, 0.5)),
):
    try:
        op.default._op_dk(torch._C.DispatchKey.CUDA, *arguments)
    except RuntimeError as error:
        print(str(error).splitlines()[0].split(", ", 2)[2])
print(_library._shared_bytes(sys.argv[2])(True, 1, 64, True))
"""
