"""The Triton kernels as Triton compiles them for sm_80, executed instruction by instruction on the CPU (tests/ops/ptx): right numbers, and no
race, no access out of bounds and nothing that depends on an uninitialised value. In processes of their own, whose Triton has the machine
for a GPU; two at a time, which share nothing but the compiled machine."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ptx import machine

from alphakernels.ops._library import OPS
from alphakernels.testing import cases

HERE = Path(__file__).parent
KNOWN = "3.9"  # whose instructions the machine has; for another Triton it may want others
TRITON = importlib.metadata.version("triton") if importlib.util.find_spec("triton") else None
pytestmark = [
    pytest.mark.skipif(TRITON is None, reason="triton is not installed"),
    pytest.mark.skipif(TRITON is not None and not TRITON.startswith(f"{KNOWN}."), reason=f"the machine runs what Triton {KNOWN} compiles"),
    pytest.mark.skipif(machine.COMPILER is None, reason="no C++ compiler"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this process's Triton interprets"),
]
# About half of the time: they run in a process beside that of the other ops.
SLOW = {"local_encoder_layer", "sfm"}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """machine.cpp, compiled."""
    return machine.build(tmp_path_factory.mktemp("ptx"))


@pytest.fixture
def start(library, tmp_path):
    """start(module, *arguments): a process that runs a module of tests/ops/ptx."""

    def start(module: str, *arguments: str) -> subprocess.Popen:
        path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", f"ptx.{module}", str(library), *arguments]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def result(process: subprocess.Popen):
    output, errors = process.communicate()
    assert process.returncode == 0, output[-2000:] + errors[-5000:]
    return json.loads(output.splitlines()[-1])


def kernels() -> set[tuple[str, str]]:
    """(module, kernel) of all that the package compiles ahead of time."""
    found = set()
    for name in {op.triton for op in OPS.values() if op.triton}:
        entries = importlib.import_module(name).AOT
        entries = entries(80) if callable(entries) else entries
        found |= {(kernel.__module__, kernel.__name__) for kernel, *_ in entries}
    return found


def test_compiled_kernels_keep_the_contract(start):
    ops = {case.op for case in cases("contract") if OPS[case.op].triton is not None}
    assert ops > SLOW
    results = [result(process) for process in [start("run_cases", *sorted(share)) for share in (SLOW, ops - SLOW)]]
    assert [line for part in results for line in part["wrong"]] == []
    assert {kernel: found for part in results for kernel, found in part["findings"].items() if found} == {}
    launched = {tuple(kernel) for part in results for kernel in part["launched"]}
    assert kernels() - launched == set(), "these kernels ran in no case: give run_cases.py one that takes them"


def test_wrong_kernels_are_found(start):
    expected = {
        "right": [],
        "missing_barrier": ["a race: a read of what another warp writes, without a barrier between them", "bits that depend on the schedule"],
        "masked_load_without_other": ["a stored value depends on something uninitialised"],
        "load_out_of_bounds": ["an access out of all tensors' bounds"],
        "store_out_of_bounds": ["an access out of all tensors' bounds"],
        "store_past_the_view": ["an access out of a tensor's bounds, within its storage"],
        "misaligned_store": ["an access to a tensor that is not aligned"],
        "different_values_at_one_address": ["a race: two programs write different values", "bits that depend on the schedule"],
        "sum_over_warps": [
            "a race: a read of what another warp writes, without a barrier between them",
            "a stored value depends on something uninitialised",
            "bits that depend on the schedule",
        ],
        "products_in_a_loop": [
            "a read of shared memory that cp.async has not been waited for",
            "a stored value depends on something uninitialised",
            "a write to shared memory that cp.async has not been waited for",
            "bits that depend on the schedule",
        ],
    }
    found = result(start("run_wrong_kernels"))
    (refused,) = found.pop("unknown_instruction")
    assert refused.startswith("Unsupported: ") and "atom" in refused
    assert found == expected
