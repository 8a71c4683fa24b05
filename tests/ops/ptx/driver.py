"""A stand-in for Triton's driver: what Triton compiles for sm_80 is launched on CPU tensors, instruction by instruction, on the machine of
machine.cpp. A launch runs by several schedules, which must leave the same bits. Triton's driver is the process's: so is this one."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime import driver

from alphakernels.ops import _library

from .machine import SCHEDULES, Finding, Kernel, Machine
from .program import Program, Unsupported

CAPABILITY = 80
SHARED_MEMORY = 99 << 10  # bytes of a program: what the smallest of the GPUs that run code for 8.0 has
_BITS = {"fp32": np.float32, "fp64": np.float64}


class Record:
    """What has been launched, as (module, kernel), and what was found in it."""

    def __init__(self) -> None:
        self.launched: set[tuple[str, str]] = set()
        self.findings: dict[str, list[Finding]] = {}  # by kernel


def _bits(value, type_name: str, width: int) -> int:
    """A number as the bits of a parameter."""
    if type_name in _BITS:
        return int.from_bytes(_BITS[type_name](value).tobytes(), "little")
    return int(value) % 2**width


def _tensors(arguments: list[torch.Tensor]) -> list[tuple[int, int, int, int]]:
    """Of each storage the first and last address (exclusive) of the elements that the arguments have there, and its own."""
    found = {}
    for t in arguments:
        if t.numel() == 0:
            continue
        storage, first = t.untyped_storage(), t.data_ptr()
        elements = sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True)) + 1
        last, begin = first + elements * t.element_size(), storage.data_ptr()
        other = found.get(begin, (first, last))
        found[begin] = (min(first, other[0]), max(last, other[1]), begin, begin + storage.nbytes())
    return list(found.values())


class Launcher:
    """Triton makes one for each compiled kernel, and calls it with what it would call a GPU's launcher with."""

    def __init__(self, source, metadata) -> None:
        self._signature = dict(source.signature)
        self._shared = metadata.shared
        self._name = (source.fn.__module__, source.fn.__name__)

    def __call__(self, x, y, z, stream, kernel: Kernel, packed, launch_metadata, enter, leave, *arguments) -> None:
        """Runs the grid x, y, z by every schedule, the findings going to the record.

        Raises:
            Unsupported: the PTX's parameters are not the arguments and Triton's two pointers to scratch memory.
        """
        if x * y * z == 0:  # Triton launches nothing
            return
        given = [(a, t) for a, t in zip(arguments, self._signature.values(), strict=True) if t != "constexpr"]
        widths = [int(p[1:]) for p in kernel.program.parameters]
        if len(widths) != len(given) + 2:
            raise Unsupported(f"{self._name}: {len(given)} arguments and two pointers expected, the PTX has {len(widths)} parameters")
        pairs = zip(given, widths, strict=False)
        parameters = [a.data_ptr() if t.startswith("*") else _bits(a, t, width) for (a, t), width in pairs] + [0, 0]
        tensors = _tensors([a for a, t in given if t.startswith("*")])
        memories = [np.ctypeslib.as_array((ctypes.c_uint8 * (end - begin)).from_address(begin)) for *_, begin, end in tensors]
        before = [memory.copy() for memory in memories]
        findings = ACTIVE.findings.setdefault(".".join(self._name), [])
        in_step = None
        for schedule in SCHEDULES:
            if schedule == "warps in falling order" and kernel.program.threads == 32:
                continue
            for memory, bits in zip(memories, before, strict=True):
                memory[:] = bits
            new = kernel.launch((x, y, z), parameters, tensors, self._shared, schedule)
            findings += [finding for finding in new if finding not in findings]
            in_step = in_step or [memory.copy() for memory in memories]
            different = sum(int((a != b).sum()) for a, b in zip(memories, in_step, strict=True))
            if different:
                findings.append(Finding("bits that depend on the schedule", f"{different} bytes differ between warps in step and {schedule}"))
        ACTIVE.launched.add(self._name)


class Utilities:
    """What Triton asks of a GPU's driver."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._kernels: dict[str, Kernel] = {}

    def get_device_properties(self, device) -> dict[str, int]:
        return {"max_shared_mem": SHARED_MEMORY, "multiprocessor_count": 108, "warpSize": 32}

    def load_binary(self, name, binary, shared, device, *rest):
        """Module, function, registers, spills and the most threads, as a GPU's driver returns them.

        Raises:
            Unsupported: an instruction that the machine does not know.
        """
        text = binary.decode()
        if text not in self._kernels:
            self._kernels[text] = self._machine.load(Program(text))
        return None, self._kernels[text], 32, 0, 1024

    def unload_module(self, module) -> None:
        pass


class Driver:
    """Triton's active driver, once `install` has run."""

    launcher_cls = Launcher

    def __init__(self, machine: Machine) -> None:
        self.utils = Utilities(machine)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


ACTIVE = Record()


def install(machine: Machine) -> Record:
    """From here on this process launches Triton's kernels on the machine, and `use_backend("triton")` takes CPU tensors; the record."""
    driver.set_active(Driver(machine))
    # Neither is ptxas needed nor its code: the "binary" that Triton loads is the PTX.
    CUDABackend.make_cubin = lambda self, source, metadata, options, capability: source.encode()
    _library.interpreting = lambda: True
    return ACTIVE
