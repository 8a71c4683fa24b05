"""machine.cpp, compiled by the machine's C++ compiler, and called from Python: loads programs, launches them, tells what it found."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .program import SHARED_BEGIN, SPECIAL, Program, Unsupported

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[2] / "csrc"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
SCHEDULES = {"warps in step": 0, "warps in rising order": 1, "warps in falling order": 2}


class Finding(NamedTuple):
    """An error of a kernel: what `kind` it is, and where it was first seen."""

    kind: str
    where: str


def build(folder: Path) -> Path:
    """Compiles the machine into `folder`; the library's path.

    Raises:
        subprocess.CalledProcessError: the compiler refuses it.
    """
    path = folder / "ptx_machine.so"
    command = [COMPILER, "-std=c++17", "-O2", "-g0", "-fPIC", "-shared", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-I", str(CSRC)]
    subprocess.run([*command, str(HERE / "machine.cpp"), "-o", str(path)], check=True)
    return path


class Machine:
    """The library that `build` has made."""

    def __init__(self, path: Path) -> None:
        self._library = library = ctypes.CDLL(str(path))
        pointer, number = ctypes.c_void_p, ctypes.c_int
        library.ptx_load.restype = pointer
        library.ptx_load.argtypes = [pointer, pointer, number, number, number, pointer, number]
        library.ptx_launch.restype = None
        library.ptx_launch.argtypes = [pointer, pointer, pointer, number, pointer, number, ctypes.c_uint32, ctypes.c_uint32, number]
        library.ptx_findings.restype = ctypes.c_char_p
        library.ptx_findings.argtypes = [pointer]

    def load(self, program: Program) -> Kernel:
        """The program in the machine, where it stays until the process ends.

        Raises:
            Unsupported: an instruction that the machine does not know, with its line.
        """
        code = []
        for i in program.instructions:
            sources = self._library.ptx_sources(i.name.encode())
            if sources == -2:
                raise Unsupported(f"the machine has no operation {i.name} ({program.where(i.line)}): add it to tests/ops/ptx/*.h")
            if sources not in (-1, len(i.sources)):
                raise Unsupported(f"{i.name} takes {sources} sources, {len(i.sources)} are given ({program.where(i.line)})")
            first_constant = len(SPECIAL) + program.registers
            slots = [s if s >= 0 else first_constant - 1 - s for s in i.sources]
            target = program.labels[i.target] if i.target else -1
            code += [i.predicate, i.negated, i.line, target, i.forgets, len(i.destinations), len(slots), len(i.offsets)]
            code += [*i.destinations, *slots, *i.offsets]
        names = (ctypes.c_char_p * len(program.instructions))(*(i.name.encode() for i in program.instructions))
        code = np.array(code, np.int64)
        constants = np.array(list(program.constants), np.uint64)
        sizes = (program.threads, program.registers)
        handle = self._library.ptx_load(names, code.ctypes.data, len(names), *sizes, constants.ctypes.data, len(constants))
        return Kernel(self._library, handle, program)


class Kernel:
    """A program in the machine's memory; `Machine.load` makes it."""

    def __init__(self, library: ctypes.CDLL, handle: int, program: Program) -> None:
        self._library, self._handle, self.program = library, handle, program

    def launch(self, grid: tuple[int, int, int], arguments: list[int], tensors: list[tuple], shared: int, schedule: str) -> list[Finding]:
        """Runs all programs of the grid by a schedule of SCHEDULES; what was found.

        Args:
            arguments: the bits of each parameter of the PTX.
            tensors: for each the first and the last address (exclusive) of its elements, and those of its storage.
            shared: bytes of shared memory.
        """
        grid, arguments, tensors = np.array(grid, np.uint32), np.array(arguments, np.uint64), np.array(tensors, np.uint64)
        places = (grid.ctypes.data, arguments.ctypes.data, len(arguments), tensors.ctypes.data, len(tensors))
        self._library.ptx_launch(self._handle, *places, SHARED_BEGIN, shared, SCHEDULES[schedule])
        rows = self._library.ptx_findings(self._handle).decode().splitlines()
        return [self._finding(*row.split("\t")) for row in rows]

    def _finding(self, kind, line, other_line, thread, other_thread, program, address, count) -> Finding:
        where = f"thread {thread} of program {program}, byte {address}: {self.program.where(int(line))}"
        if int(other_line) > 0:
            where += f"; thread {other_thread}: {self.program.where(int(other_line))}"
        return Finding(kind, f"{where} ({count} times)")
