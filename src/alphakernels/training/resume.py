"""Resuming: everything the loop needs to go on as if it had never been interrupted, in one checkpoint.

That is the module, the best weights so far, the optimizer and scheduler, the early-stopping count, the history,
and the state of every random stream. A fingerprint of the arguments goes with it: going on with others would give
a result that no uninterrupted run gives.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alphakernels.training.checkpoint import CheckpointError, check_module_state, load_tensors, save_tensors
from alphakernels.training.early_stopping import EarlyStopping

_MODULE, _BEST, _OPTIMIZER, _TORCH_RNG, _CUDA_RNG, _NUMPY_RNG = (
    "module.",
    "best.",
    "optimizer.",
    "rng.torch",
    "rng.cuda",
    "rng.numpy",
)


@dataclass
class LoopState:
    """What a checkpoint holds: live objects, and the values that change from epoch to epoch."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    stopper: EarlyStopping
    best: dict[str, Tensor]
    scheduler: Any | None = None
    random_state: np.random.RandomState | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False
    stopped_early: bool = False


def save_loop(path: str | os.PathLike[str], state: LoopState, fingerprint: Mapping[str, Any]) -> None:
    """Writes the checkpoint; see `save_tensors` for what an interruption does (nothing)."""
    tensors = {_MODULE + name: tensor for name, tensor in state.module.state_dict().items()}
    tensors |= {_BEST + name: tensor for name, tensor in state.best.items()}
    optimizer = state.optimizer.state_dict()
    scalars: dict[str, dict[str, Any]] = {}
    for number, values in optimizer["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIMIZER}{number}.{key}"] = value
            else:
                scalars.setdefault(str(number), {})[key] = value
    tensors[_TORCH_RNG] = torch.get_rng_state()
    device = _cuda_device(state.module)
    if device is not None:
        tensors[_CUDA_RNG] = torch.cuda.get_rng_state(device)
    metadata: dict[str, Any] = {
        "kind": "training",
        "class": type(state.module).__name__,
        "fingerprint": normalised(fingerprint),
        "finished": state.finished,
        "stopped_early": state.stopped_early,
        "history": state.history,
        "stopper": state.stopper.state_dict(),
        "optimizer_groups": optimizer["param_groups"],
        "optimizer_scalars": scalars,
        "scheduler": None if state.scheduler is None else state.scheduler.state_dict(),
    }
    if state.random_state is not None:
        _, keys, position, has_gauss, gauss = state.random_state.get_state()
        tensors[_NUMPY_RNG] = torch.from_numpy(keys.astype(np.int64))
        metadata["numpy_rng"] = [int(position), int(has_gauss), float(gauss)]
    save_tensors(path, tensors, metadata)


def load_loop(path: str | os.PathLike[str], state: LoopState, fingerprint: Mapping[str, Any]) -> None:
    """Brings `state` and the global random streams to where the checkpoint was written.

    Raises:
        CheckpointError: unreadable, of another model or optimizer, or written with other arguments (named).
    """
    tensors, metadata = load_tensors(path)
    source = f"checkpoint {os.fspath(path)}"
    if metadata.get("kind") != "training":
        raise CheckpointError(
            f"{source}: expected the checkpoint of an unfinished or finished training, got one of kind "
            f"{metadata.get('kind')!r}; a saved model is read with load()"
        )
    _check_fingerprint(source, metadata["fingerprint"], normalised(fingerprint))
    weights = _section(tensors, _MODULE)
    check_module_state(state.module, weights, source=source, saved_class=metadata["class"])
    values: dict[int, dict[str, Any]] = {int(n): dict(v) for n, v in metadata["optimizer_scalars"].items()}
    for name, tensor in _section(tensors, _OPTIMIZER).items():
        number, key = name.split(".", 1)
        values.setdefault(int(number), {})[key] = tensor
    try:
        state.optimizer.load_state_dict({"state": values, "param_groups": metadata["optimizer_groups"]})
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{source}: expected the state of this optimizer, got another's ({error})") from error
    # From here on nothing can fail: the module is either untouched or complete.
    state.module.load_state_dict(weights)
    device = next((p.device for p in state.module.parameters()), torch.device("cpu"))
    best: dict[int, Tensor] = {}  # by identity, so that names which share a tensor still do on the device
    state.best = {
        name: best.setdefault(id(tensor), tensor.to(device)) for name, tensor in _section(tensors, _BEST).items()
    }
    if state.scheduler is not None:
        state.scheduler.load_state_dict(metadata["scheduler"])
    state.stopper.load_state_dict(metadata["stopper"])
    state.history[:] = metadata["history"]
    state.finished = metadata["finished"]
    state.stopped_early = metadata["stopped_early"]
    torch.set_rng_state(tensors[_TORCH_RNG])
    cuda = _cuda_device(state.module)
    if cuda is not None and _CUDA_RNG in tensors:
        torch.cuda.set_rng_state(tensors[_CUDA_RNG], cuda)
    if state.random_state is not None:
        position, has_gauss, gauss = metadata["numpy_rng"]
        keys = tensors[_NUMPY_RNG].numpy().astype(np.uint32)
        state.random_state.set_state(("MT19937", keys, position, has_gauss, gauss))


def normalised(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """The fingerprint as JSON gives it back (tuples become lists, keys strings)."""
    return json.loads(json.dumps(dict(fingerprint)))


def _check_fingerprint(source: str, saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    differences = [
        f"{name}: the checkpoint has {saved.get(name)!r}, this run {given.get(name)!r}"
        for name in [*given, *(name for name in saved if name not in given)]
        if saved.get(name) != given.get(name)
    ]
    if differences:
        raise CheckpointError(
            f"{source}: resuming needs the arguments it was written with, but {'; '.join(differences)}; "
            "give the same arguments, or start anew with resume=False"
        )


def _section(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _cuda_device(module: nn.Module) -> torch.device | None:
    return next((p.device for p in module.parameters() if p.device.type == "cuda"), None)
