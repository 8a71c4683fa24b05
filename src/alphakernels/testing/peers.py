"""Who a network is measured against: Qlib's own module where Qlib is installed, else plain PyTorch.

Plain PyTorch is our network with nothing of ours that computes: torch.nn's GRU and LSTM (cuDNN on a GPU) and torch.nn's
TransformerEncoderLayer in the place of our modules, and every other op by its PyTorch reference. Where that is written to be read and
not to be fast, a peer gets the better one: torch's own batch norm by virtual batches, sparsemax with a backward pass of its own.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import nn, use_backend
from ..ops.ghost_batch_norm import reference as norm_reference
from ..ops.sparsemax import reference as sparsemax_reference

Work = Callable[[torch.nn.Module], Callable[[], object]]


class _Last:
    def last(self, x: Tensor) -> Tensor:
        return self(x)[0][:, -1]


class TorchGRU(_Last, torch.nn.GRU):
    """torch's, with what our networks ask of ours."""


class TorchLSTM(_Last, torch.nn.LSTM):
    """Likewise."""


class TorchLayer(nn.TransformerEncoderLayer):
    """Runs on torch's own whatever the call is."""

    def _uncovered(self, *call: Any) -> str:
        return "it is the peer"


_PLAIN = {nn.GRU: TorchGRU, nn.LSTM: TorchLSTM, nn.TransformerEncoderLayer: TorchLayer}


def plain(network: torch.nn.Module) -> torch.nn.Module:
    """A copy of one of our networks, with torch's layers. Its other ops are plain PyTorch inside `plain_pytorch()` only."""
    network = copy.deepcopy(network)
    for module in network.modules():
        module.__class__ = _PLAIN.get(type(module), type(module))
        if isinstance(module, (TorchGRU, TorchLSTM)):
            module.flatten_parameters()
    return network


@dataclass(frozen=True)
class Peer:
    """A network and whose it is."""

    owner: str  # "Qlib" or "plain PyTorch"
    network: torch.nn.Module

    @property
    def eager_name(self) -> str:
        return f"{self.owner} eager"

    def eager(self, work: Work) -> dict[str, Callable[[], object]]:
        """A contender: `work(network)`."""
        return {self.eager_name: _plainly(work(self.network))}

    def compiled(self, work: Work, mode: str | None = None) -> dict[str, Callable[[], object]]:
        """The same by torch.compile; mode="reduce-overhead" captures CUDA graphs."""
        network = torch.compile(copy.deepcopy(self.network), dynamic=False, mode=mode)
        name = f"{self.owner} torch.compile" + ("" if mode is None else f", {mode}")
        return {name: _plainly(work(network))}


def _ghost_batch_norm(x, weight, bias, running_mean, running_var, linear_bias, virtual_batch_size, training, momentum, eps):
    """The reference's results but for the statistics of the virtual batches, by torch's batch norm."""
    if training and running_mean is not None:
        running_mean, running_var = running_mean.clone(), running_var.clone()  # the caller takes the new ones over
    if linear_bias is not None:
        x = x + linear_bias
    norm = (running_mean, running_var, weight, bias, training, momentum, eps)
    chunks = x.split(norm_reference.chunk_sizes(len(x), virtual_batch_size)) if training else (x,)
    y = torch.cat([F.batch_norm(chunk, *norm) for chunk in chunks]) if len(chunks) > 1 else F.batch_norm(x, *norm)
    nothing = x.new_empty(0)
    return y, nothing, nothing, *((running_mean, running_var) if training and running_mean is not None else (nothing, nothing))


class _Sparsemax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x - x.amax(-1, keepdim=True)
        p = torch.relu(x - sparsemax_reference.threshold(x))
        ctx.save_for_backward(p)
        return p

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        inside = ctx.saved_tensors[0] > 0
        mean = torch.where(inside, grad, 0.0).sum(-1, keepdim=True) / inside.sum(-1, keepdim=True)
        return torch.where(inside, grad - mean, 0.0)


@contextmanager
def plain_pytorch() -> Iterator[None]:
    """All ops in plain PyTorch, as fast as it gets."""
    slow = norm_reference.ghost_batch_norm, sparsemax_reference.sparsemax
    norm_reference.ghost_batch_norm, sparsemax_reference.sparsemax = _ghost_batch_norm, _Sparsemax.apply
    try:
        with use_backend("reference"):
            yield
    finally:
        norm_reference.ghost_batch_norm, sparsemax_reference.sparsemax = slow


def _plainly(work: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with plain_pytorch():
            return work()

    return run


def peer_of(network: torch.nn.Module, file: str, name: str, *args: Any, **options: Any) -> Peer:
    """Qlib's class `name` of `qlib.contrib.model.<file>` with the network's weights, or the network in plain PyTorch."""
    try:
        module = importlib.import_module(f"qlib.contrib.model.{file}")
    except ImportError:
        return Peer("plain PyTorch", plain(network))
    theirs = getattr(module, name)(*args, **options).to(next(network.parameters()).device)
    theirs.load_state_dict(network.state_dict())
    return Peer("Qlib", theirs)
