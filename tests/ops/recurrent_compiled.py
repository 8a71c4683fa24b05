"""What nvcc makes of csrc/cuda/recurrent.cu: a table of every kernel's registers, shared memory and spills.

    python tests/ops/recurrent_compiled.py      writes benchmarks/records/cuda-kernels.csv
"""

from __future__ import annotations

import csv
import ctypes
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import recurrent_on_host as host

ARCHITECTURES = (80, 90, 100)
RECORD = Path(__file__).resolve().parents[2] / "benchmarks" / "records" / "cuda-kernels.csv"
NVCC = shutil.which("nvcc")
_PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


def compile_kernels(arch: int, target: Path) -> str:
    """Compiles the kernels for one architecture into `target`; ptxas's report.

    Raises:
        RuntimeError: nvcc failed or warned.
    """
    flags = ["-std=c++17", "-O3", "-Xcompiler=-fPIC", f"-gencode=arch=compute_{arch},code=sm_{arch}", "-Xptxas=-v", "-Werror=all-warnings"]
    source = host.CSRC / "cuda" / "recurrent.cu"
    done = subprocess.run([NVCC, *flags, "-c", str(source), "-o", str(target)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-4000:])
    return done.stderr


def _named(symbol: str, library: ctypes.CDLL) -> tuple[str, int]:
    """A kernel's name as people read it, and the dynamic shared memory that its largest hidden size may need."""
    if "ScaleRows" in symbol:
        return f"dropout {'bf16' if 'Bfloat16' in symbol else 'fp16' if 'Float16' in symbol else 'fp32'}", 0
    backward, lstm = "Backward" in symbol, "LstmCell" in symbol
    product = re.search(r"ProductE(\d)", symbol)  # an enumerator of Product: one less than of Precision
    precision = int(product[1]) + 1 if product else 0
    extent = int(re.search(r"Li(64|128)E", symbol)[1])
    library.shared_bytes.restype = ctypes.c_int64
    dynamic = library.shared_bytes(*(ctypes.c_int64(int(v)) for v in (lstm, precision, extent, backward)))
    vectors, known = re.search(r"Lb([01])ELi(\d+)EE", symbol).groups()
    sizes = f"H={extent}" if int(known) else f"H<={extent}, {'whole vectors' if int(vectors) else 'any rows'}"
    return f"{'lstm' if lstm else 'gru'} {'backward' if backward else 'forward'} {_PRECISIONS[precision]} {sizes}", dynamic


def table(arch: int, report: str, library: ctypes.CDLL) -> list[dict[str, str]]:
    """A row a kernel, in the order of their names; numbers are of a thread (registers, spilled bytes) and of a block (shared memory)."""
    pattern = (
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers([^\n]*)"
    )
    rows = []
    for symbol, stack, stores, loads, registers, rest in re.findall(pattern, report, re.DOTALL):
        name, dynamic = _named(symbol, library)
        static = re.search(r"(\d+) bytes smem", rest)
        spilled = max(int(stack), int(stores), int(loads))
        shared = dynamic + (int(static[1]) if static else 0)
        rows.append({"arch": f"sm_{arch}", "kernel": name, "registers": registers, "shared_bytes": str(shared), "spilled_bytes": str(spilled)})
    return sorted(rows, key=lambda row: row["kernel"])


def recorded(arch: int) -> list[dict[str, str]]:
    with RECORD.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["arch"] == f"sm_{arch}"]


def record() -> None:
    """Writes the table of all architectures."""
    with tempfile.TemporaryDirectory() as folder:
        library = host.build(Path(folder))
        rows = [row for arch in ARCHITECTURES for row in table(arch, compile_kernels(arch, Path(folder, "recurrent.o")), library)]
    with RECORD.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    record()
