"""How the benchmarks measure and report.

A row is one piece of work done by alphakernels and by its peers on the same inputs, in one run: the contenders take turns,
round after round, so that whatever else the machine does falls on all of them alike, and medians are compared. pytest-benchmark
keeps our own times for regression runs; the ratios to the peers and to the floor are printed at the end and written to
benchmarks/results.json, where runs of single files of the same commit and day add up.

The floor of a row is max(FLOPs / measured GEMM rate of its dtype, bytes / measured copy rate), both measured in the same run.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import pytest
import torch

import alphakernels
from alphakernels.ops import _library

ROWS: list[Row] = []
RATES: dict[str, float] = {}  # of this machine, as `Rates` was measured
PEAKS: list[Peak] = []
RESULTS = Path(__file__).parent / "results.json"


@dataclass
class Row:
    """One measured row: medians in milliseconds, ratios of each peer's median to ours."""

    name: str
    ours_ms: float
    peers_ms: dict[str, float]
    targets: dict[str, float] = field(default_factory=dict)  # peer -> ratio to reach
    floor_ms: float | None = None
    note: str = ""
    size: int | None = None  # of a row that is drawn against its size, among rows of the same name but for it
    peak_bytes: dict[str, int] = field(default_factory=dict)  # of such a row, and of all on a GPU: contender -> most memory alive at once

    def ratio(self, peer: str) -> float:
        return self.peers_ms[peer] / self.ours_ms


@dataclass
class Peak:
    """Peak memory of a call, bytes above what was alive before: ours and a peer's."""

    name: str
    ours: int
    peer: str
    theirs: int
    target: float  # ratio to reach


def _peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    function = getattr(function, "uncaptured", function)  # a graph's replay allocates nothing: its memory is that of the step in it
    function()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    alphakernels.empty_cache()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.profiler.profile(profile_memory=True) as profile:
            function()
    alive = peak = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak + alphakernels.empty_cache()  # with what is handed on to the next step, which the allocator does not see


@pytest.fixture
def peak_bytes():
    """peak_bytes(function, device): the most memory alive at once during the call, above what was alive before, by the allocator's own
    record; on the CPU a kernel's scratch is not in it."""
    return _peak_bytes


@pytest.fixture
def record_peak():
    """record_peak(name, ours, peer, theirs, target): a row of the memory table."""
    return lambda *values: PEAKS.append(Peak(*values))


def pytest_addoption(parser) -> None:
    parser.addoption("--device", default="cpu", help="cpu or cuda")
    parser.addoption("--bench-threads", type=int, default=2, help="torch threads")
    parser.addoption("--rounds", type=int, default=15, help="rounds of each row, at least 5")


def pytest_configure(config) -> None:
    torch.set_num_threads(config.getoption("--bench-threads"))
    if config.getoption("--device").startswith("cuda") and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda needs a GPU and a CUDA build of torch, which are not here")


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    return torch.device(request.config.getoption("--device"))


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call; on a GPU by events."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def take_turns(
    contenders: dict[str, Callable[[], object]], device: torch.device, rounds: int, warm_up: int = 3, settle: bool = False
) -> dict[str, float]:
    """Median milliseconds of each contender; short calls are repeated within a round, and of calls that take long there are fewer rounds,
    5 at least. To settle, each turn begins with a call that is not counted: where a contender leaves the process in another state than the
    next one would have found by itself."""
    repeats, together = {}, 0.0
    for name, function in contenders.items():
        took = 1.0
        for call in range(warm_up):
            took = seconds(function, device)
            if call > 0 and took > 1:
                break
        repeats[name] = max(1, min(50, int(2e-3 / max(took, 1e-7))))
        together += took
    if warm_up > 0:
        rounds = max(5, min(rounds, int(30 / together)))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, function in contenders.items():
            if settle:
                function()
            n = repeats[name]
            times[name].append(seconds(lambda f=function, n=n: [f() for _ in range(n)], device) / n)
    return {name: statistics.median(t) * 1e3 for name, t in times.items()}


@dataclass(frozen=True)
class Rates:
    """What this machine does at best, measured now: FLOPs a second of a GEMM, bytes a second of a copy (read + write)."""

    gemm: dict[torch.dtype, float]
    copy: float

    def floor_ms(self, flops: float, moved: float, dtype: torch.dtype = torch.float32) -> float:
        return max(flops / self.gemm[dtype], moved / self.copy) * 1e3


@pytest.fixture(scope="session")
def rates(device) -> Rates:
    n = 2048 if device.type == "cpu" else 8192
    gemm = {}
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    products.fp32_precision = "tf32"  # of a GPU: what float32 may take at the fastest, as recurrences do by default
    for dtype in (torch.float32,) if device.type == "cpu" else (torch.float32, torch.bfloat16):
        a, b = torch.randn(n, n, device=device, dtype=dtype), torch.randn(n, n, device=device, dtype=dtype)
        gemm[dtype] = 2 * n**3 / take_turns({"gemm": lambda a=a, b=b: a @ b}, device, 7)["gemm"] * 1e3
    products.fp32_precision = before
    source = torch.randn(32 << 20 if device.type == "cpu" else 1 << 29, device=device)
    target = torch.empty_like(source)
    copy = take_turns({"copy": lambda: target.copy_(source)}, device, 7)["copy"]
    found = Rates(gemm, 2 * source.numel() * 4 / copy * 1e3)
    RATES.update({"copy GB/s": found.copy / 1e9, **{f"GEMM TFLOP/s, {str(d)[6:]}": rate / 1e12 for d, rate in gemm.items()}})
    return found


@pytest.fixture
def compare(request, device, rates, benchmark):
    """compare(name, ours, peers, flops=, moved=, targets=, size=): measures a row, records it, returns it; with a size, and on a GPU, its
    memory too."""

    def run(
        name: str,
        ours: Callable[[], object],
        peers: dict[str, Callable[[], object]],
        *,
        flops: float = 0,
        moved: float = 0,
        targets: dict[str, float] | None = None,
        note: str = "",
        size: int | None = None,
        dtype: torch.dtype = torch.float32,
        rounds: int | None = None,  # of work that takes a minute, which nothing warms up
        settle: bool = False,  # see take_turns
    ) -> Row:
        contenders = {"alphakernels": ours, **peers}
        if rounds is None:
            # The second call tells how long one takes: the first may have compiled.
            medians = take_turns(contenders, device, max(5, request.config.getoption("--rounds")), warm_up=2 if settle else 3, settle=settle)
        else:
            medians = take_turns(contenders, device, rounds, warm_up=0)
        measured = size is not None or device.type == "cuda"
        peaks = {contender: _peak_bytes(f, device) for contender, f in contenders.items()} if measured else {}
        floor = rates.floor_ms(flops, moved, dtype) if flops or moved else None
        row = Row(name, medians.pop("alphakernels"), medians, targets or {}, floor, note, size, peaks)
        ROWS.append(row)
        _write()  # now, so that a run which is killed or dies leaves what it has
        benchmark.extra_info.update(asdict(row))
        benchmark.pedantic(ours, rounds=5, iterations=1, warmup_rounds=1)
        return row

    return run


def environment() -> dict:
    """Machine, versions and commit of a record."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "isa": _library.compiled().isa,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": importlib.metadata.version("triton") if _library.has_triton() else None,
        "driver": _driver() if torch.cuda.is_available() else None,
        "float32": _precision() if torch.cuda.is_available() else None,
        "alphakernels": alphakernels.__version__,
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


@cache
def _commit() -> str | None:
    """Of the working tree, or ALPHAKERNELS_COMMIT where it came without its history."""
    # A tree that was copied to another machine may belong to another user, which git refuses unless told.
    query = ["git", "-c", "safe.directory=*", "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(query, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        found = ""
    return os.environ.get("ALPHAKERNELS_COMMIT") or found or None


@cache
def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=10).stdout.split("\n")[0] or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def _precision() -> str:
    """How a GPU multiplies float32: torch's switches of the recurrences and of other products."""
    return f"recurrences {torch.backends.cudnn.rnn.fp32_precision}, products {torch.backends.cuda.matmul.fp32_precision}"


def _processor() -> str:
    """With family and model: a virtual machine's name for its processor may be "AMD EPYC" for a Zen 4 and a Zen 5."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first)}
        return f"{known['model name']} (family {known['cpu family']}, model {known['model']})"
    except (OSError, KeyError):
        return platform.processor()


def _what(row: dict) -> tuple:
    """What a row says: its name and its peers."""
    return row["name"], *row.get("peers_ms", ())


def _write() -> None:
    results = {"environment": environment(), "rates": RATES, "rows": [asdict(r) for r in ROWS], "peaks": [asdict(p) for p in PEAKS]}
    RESULTS.write_text(json.dumps(_joined(results), indent=1) + "\n")


def _joined(results: dict) -> dict:
    """With the rows of earlier runs in the same environment, of the same commit, that this run has not measured again."""
    try:
        before = json.loads(RESULTS.read_text())
    except (OSError, ValueError):
        return results
    if before["environment"] != results["environment"]:
        return results
    for kind in ("rows", "peaks"):
        again = {_what(row) for row in results[kind]}
        results[kind] = [row for row in before[kind] if _what(row) not in again] + results[kind]
    return results


def pytest_terminal_summary(terminalreporter) -> None:
    if not ROWS and not PEAKS:
        return
    write = terminalreporter.write_line
    write("")
    write(f"{'row':44s} {'peer':22s} {'ours ms':>9s} {'peer ms':>9s} {'ratio':>7s} {'target':>7s} {'floor/time':>10s}")
    for row in ROWS:
        for i, (peer, ms) in enumerate(row.peers_ms.items()):
            target = f"{row.targets[peer]:.2f}" if peer in row.targets else ""
            floor = f"{row.floor_ms / row.ours_ms:.2f}" if row.floor_ms and i == 0 else ""
            write(f"{row.name:44s} {peer:22s} {row.ours_ms:9.3f} {ms:9.3f} {row.ratio(peer):6.2f}x {target:>7s} {floor:>10s}")
        if not row.peers_ms:
            write(f"{row.name:44s} {'':22s} {row.ours_ms:9.3f}")
        if row.note:
            write(f"    {row.note}")
    for peak in PEAKS:
        ratio = peak.theirs / peak.ours
        write(f"{peak.name:44s} {peak.peer:22s} {peak.ours / 1e6:7.1f}MB {peak.theirs / 1e6:7.1f}MB {ratio:6.2f}x {peak.target:7.2f}")
    _write()
    write(f"written to {RESULTS}")
