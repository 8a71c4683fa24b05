"""A training step as one CUDA graph: forward, backward, clipping and the optimizer's step are recorded once and then replayed as a
whole, so that a step of many small kernels costs the GPU's time and not that of launching them one by one.

What a graph replays is fixed: the kernels, where they read and write, and every number that the host gave them. A step is therefore
captured where nothing changes from one to the next but what lies in the batch's tensors; otherwise it runs as it always did, and
`Steps.report` says why. The first steps always run so: they are real steps of the training, they make the optimizer's state, and they
show what a step does.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

WARM_UP = 3  # steps of one kind before it is captured
_ABANDONED: list[Any] = []  # graphs whose capture failed: torch's allocators may hold their address on

# A step of the training: takes the batch, and is given the loss as soon as it is known.
Step = Callable[[Any, Callable[[Tensor], None]], None]


class Graphs(Protocol):
    """What records and replays."""

    def warm(self, function: Callable[[], None]) -> None:
        """Runs the function as it will be captured."""

    def capture(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Records the function, and does not run it. What is returned runs it, and gives the same tensor each time."""


class CudaGraphs:
    """torch's CUDA graphs, on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def warm(self, function: Callable[[], None]) -> None:
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                function()
            torch.cuda.current_stream().wait_stream(self._stream)

    def capture(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        before = torch.cuda.current_stream(self._device)
        try:
            # What other threads do on the GPU meanwhile, a prediction say, is theirs and no fault of the capture.
            with (
                torch.cuda.device(self._device),
                torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"),
            ):
                out = function()
        except Exception:
            self._abandon(graph, pool, before)
            raise

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay

    def _abandon(self, graph: Any, pool: Any, before: torch.cuda.Stream) -> None:
        """Ends a capture that an operation made invalid: torch then leaves its stream current, its allocator on the graph's pool and its
        random generator in the belief that a graph is recorded."""
        torch.cuda.set_stream(before)
        with suppress(RuntimeError):  # where the capture has ended all the same, and the allocator has left the pool
            torch._C._cuda_endAllocateToPool(self._device.index, pool)
            torch._C._cuda_releasePool(self._device.index, pool)
            _ABANDONED.append(graph)
        # A capture that succeeds is what brings the generator back.
        with suppress(RuntimeError), torch.cuda.device(self._device), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=self._stream):
            torch.zeros(1, device=self._device)
        torch.cuda.set_stream(before)


def _host_streams() -> tuple[Any, ...]:
    """Where the random streams of the host are, comparable."""
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), kind, keys.tobytes(), *rest


def reason_against(module: nn.Module, optimizer: torch.optim.Optimizer, *, asked: bool) -> str | None:
    """Why no step of this training can be captured, as far as that is known before the first one; None where nothing speaks against."""
    if not asked:
        return "capture=False"
    devices = {p.device for p in module.parameters()}
    if len(devices) != 1 or next(iter(devices)).type != "cuda":
        return f"the parameters are on {', '.join(sorted(map(str, devices))) or 'no device'}, and a graph needs one GPU"
    if isinstance(module, DistributedDataParallel):
        return "several processes train, and their exchange is not captured"
    return reason_against_optimizer(optimizer)


def reason_against_optimizer(optimizer: torch.optim.Optimizer) -> str | None:
    """Why its step cannot be captured, or None."""
    if type(optimizer) is torch.optim.SGD:  # keeps no count of its steps
        return None
    if all(group.get("capturable") for group in optimizer.param_groups):
        return None
    return f"the optimizer {type(optimizer).__name__} keeps its state on the host; made with capturable=True it can be captured"


def reason_against_batch(batch: Any, device: torch.device) -> str | None:
    """Why a step on this batch cannot be replayed on the next one of its shape, or None."""
    if not is_dataclass(batch):
        return f"a batch is no dataclass but a {type(batch).__name__}, whose tensors are not known"
    for name, tensor in _tensors(batch).items():
        # The offsets of one day, [0, B], say what x's shape says.
        if tensor.device != device and not (name == "offsets" and len(tensor) == 2):
            return f"the batches' {name} are on {tensor.device}, where a graph would not read them again"
    return None


def _tensors(batch: Any) -> dict[str, Tensor]:
    """A batch's tensors by the name of their field, those of a dict of tensors by both names."""
    found: dict[str, Tensor] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        for key, tensor in value.items() if isinstance(value, dict) else [(None, value)]:
            if isinstance(tensor, Tensor):
                found[field.name if key is None else f"{field.name}[{key!r}]"] = tensor
    return found


def _copied(batch: Any, device: torch.device) -> Any:
    """The batch with copies of its tensors on the device."""

    def copied(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: copied(one) for key, one in value.items()}
        return value.clone() if isinstance(value, Tensor) and value.device == device else value

    return replace(batch, **{field.name: copied(getattr(batch, field.name)) for field in fields(batch)})


class _Captured:
    """A captured step, and the batch whose memory it reads."""

    def __init__(self, batch: Any, device: torch.device, step: Step, graphs: Graphs) -> None:
        self._own = _copied(batch, device)
        self._tensors = {name: tensor for name, tensor in _tensors(self._own).items() if tensor.device == device}

        def run() -> Tensor:
            losses: list[Tensor] = []
            step(self._own, losses.append)
            return losses[0]

        self._replay = graphs.capture(run)

    def __call__(self, batch: Any) -> Tensor:
        given = _tensors(batch)
        for name, tensor in self._tensors.items():
            tensor.copy_(given[name], non_blocking=True)
        return self._replay().clone()


class Steps:
    """Runs the steps of a training, captured where they can be.

    Args:
        step: one step, run as it is.
        optimizer: whose learning rates a graph holds as numbers: it is captured anew when they change.
        device: of the module.
        reason: why not to capture, if that is known already.
        graphs: by default torch's.

    Attributes:
        reason: why steps are not captured, None where nothing was found.
        total, replayed: steps so far, and how many of them as a graph.
    """

    def __init__(
        self, step: Step, optimizer: torch.optim.Optimizer, device: torch.device, reason: str | None, graphs: Graphs | None = None
    ) -> None:
        self._step, self._optimizer, self._device, self.reason = step, optimizer, device, reason
        self._graphs = graphs if graphs is not None or reason is not None else CudaGraphs(device)
        self._rates: tuple[float, ...] = ()
        self._seen: dict[tuple, int] = {}
        self._graph: _Captured | None = None
        self._captured_shape: tuple | None = None
        self.total = self.replayed = 0

    def __call__(self, batch: Any, seen: Callable[[Tensor], None]) -> None:
        """One step; `seen` is given the loss: before the backward pass, or after a whole replay."""
        self.total += 1
        if self.reason is None:
            self.reason = reason_against_batch(batch, self._device)
        if self.reason is not None:
            self._step(batch, seen)
            return
        rates = tuple(float(group["lr"]) for group in self._optimizer.param_groups)
        if rates != self._rates:
            self._rates, self._seen, self._graph, self._captured_shape = rates, {}, None, None
        shape = tuple((name, tuple(t.shape), t.dtype) for name, t in _tensors(batch).items())
        self._seen[shape] = self._seen.get(shape, 0) + 1
        if self._graph is None and self._seen[shape] > WARM_UP:
            self._capture(batch, shape)
        if shape == self._captured_shape:
            self.replayed += 1
            seen(self._graph(batch))
        elif self.reason is not None:  # it was found out just now
            self._step(batch, seen)
        else:
            self._watched(batch, seen)

    def _watched(self, batch: Any, seen: Callable[[Tensor], None]) -> None:
        """A step that may be captured later, looked at for what a graph could not do."""
        before = _host_streams()
        # On a copy, as it will be captured: a slice begins anywhere in memory, and kernels that were compiled or chosen for such an
        # address are not those of a tensor of its own, which nothing can load during a capture.
        own = _copied(batch, self._device)
        self._graphs.warm(lambda: self._step(own, seen))
        if before != _host_streams():
            self.reason = "a step draws random numbers on the host, and a graph would repeat them"

    def _capture(self, batch: Any, shape: tuple) -> None:
        try:
            self._graph, self._captured_shape = _Captured(batch, self._device, self._step, self._graphs), shape
        except (RuntimeError, ValueError) as error:  # an operation that cannot be captured: it waits for the device, or asks for memory
            cause = error.__context__ or error  # the end of a capture that failed says only that it failed
            self.reason = f"capturing failed: {str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__}"

    @property
    def report(self) -> str:
        """How the steps ran, and why not otherwise."""
        if self.replayed:
            return f"{self.replayed} of {self.total} steps replayed as a CUDA graph" + (f"; then no more: {self.reason}" if self.reason else "")
        if self.reason is not None:
            return f"steps run one kernel after the other: {self.reason}"
        return f"steps run one kernel after the other: none of {len(self._seen)} shapes of batches came more than {WARM_UP} times"
