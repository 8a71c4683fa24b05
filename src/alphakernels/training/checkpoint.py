"""Checkpoints: one safetensors file with its metadata as JSON in the header. Reading one never runs code.

A file is written beside its final name, flushed to the disk, and renamed over the old one, so that an interrupted
save leaves the previous file whole. Tensors that share memory (tied weights) are stored once; the header says
under which further names they go. The format of the file itself: https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FORMAT_VERSION = 1
_VERSION_KEY, _METADATA_KEY, _ALIASES_KEY = (
    "alphakernels_format",
    "alphakernels_metadata",
    "alphakernels_aliases",
)


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or is not what it was asked to be."""


def memory_key(tensor: Tensor) -> tuple[Any, ...] | None:
    """Equal for two names of the same memory; None for an empty tensor, which has none."""
    if tensor.numel() == 0:
        return None
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes tensors and JSON metadata to one file, in one step: afterwards `path` is the new file or the old one.

    Args:
        path: its folder is made when missing.
        tensors: any device and layout; two names of the same memory are stored once.
        metadata: JSON values (floats keep every bit).

    Raises:
        OSError, SafetensorError: the file could not be written; the previous one is as it was.
    """
    path = Path(path)
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first_name: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        key = memory_key(tensor)
        if key is not None and key in first_name:
            aliases[name] = first_name[key]
            continue
        if key is not None:
            first_name[key] = name
        host = tensor.cpu().contiguous()
        # A slice of a larger buffer would be refused as shared memory.
        whole = host.untyped_storage().nbytes() == host.numel() * host.element_size()
        stored[name] = host if whole else host.clone()
    header = {
        _VERSION_KEY: str(FORMAT_VERSION),
        _METADATA_KEY: json.dumps(dict(metadata)),
        _ALIASES_KEY: json.dumps(aliases),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(stored, temporary, metadata=header)
        _flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        _flush(path.parent)  # the rename itself


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save_tensors` wrote: (tensors on the CPU, metadata). Aliased names give the same tensor.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: a truncated or corrupt file, a safetensors file of somebody else, or a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: expected a file at {path}, found none")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            # Cloned, because the tensors may be views of the mapped file.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"checkpoint {path}: expected a whole safetensors file, got a truncated or corrupt one "
            f"({error}); use another copy or train again"
        ) from error
    version = header.get(_VERSION_KEY)
    if version is None:
        raise CheckpointError(
            f"checkpoint {path}: expected a file written by alphakernels, got safetensors without its header; "
            "load plain weights into a network with safetensors.torch.load_file"
        )
    if version != str(FORMAT_VERSION):
        raise CheckpointError(
            f"checkpoint {path}: expected format version {FORMAT_VERSION}, got {version}; "
            "read it with the alphakernels version that wrote it, or a newer one"
        )
    try:
        metadata = json.loads(header[_METADATA_KEY])
        for name, stored_as in json.loads(header[_ALIASES_KEY]).items():
            tensors[name] = tensors[stored_as]
    except (KeyError, ValueError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {path}: expected JSON metadata, got a corrupt header ({error})") from error
    return tensors, metadata


def load_module_state(
    module: nn.Module, tensors: Mapping[str, Tensor], *, source: str, saved_class: str | None = None
) -> None:
    """Loads weights into `module`, every name and shape exactly as the module has them.

    Raises:
        CheckpointError: weights of another model; see `check_module_state`. The module is then unchanged.
    """
    check_module_state(module, tensors, source=source, saved_class=saved_class)
    module.load_state_dict(dict(tensors), strict=True)


def check_module_state(
    module: nn.Module, tensors: Mapping[str, Tensor], *, source: str, saved_class: str | None = None
) -> None:
    """Raises CheckpointError naming the first missing, unexpected and misshapen tensors, if there are any."""
    own = module.state_dict()
    faults = []
    missing = [name for name in own if name not in tensors]
    unexpected = [name for name in tensors if name not in own]
    for what, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            faults.append(f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}")
    shapes = [
        f"{name}: expected {tuple(own[name].shape)}, got {tuple(tensors[name].shape)}"
        for name in own
        if name in tensors and own[name].shape != tensors[name].shape
    ]
    if shapes:
        faults.append(f"{len(shapes)} of another shape: {'; '.join(shapes[:3])}{'; ...' if len(shapes) > 3 else ''}")
    if faults:
        of = f" (saved from {saved_class})" if saved_class else ""
        raise CheckpointError(
            f"{source}: expected the weights of this {type(module).__name__}, got another model's{of}: "
            + "; ".join(faults)
        )


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the module's state, on its device; shared tensors stay shared."""
    copies: dict[tuple[Any, ...], Tensor] = {}
    result: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            key = memory_key(tensor)
            if key is None:
                result[name] = tensor.clone()
                continue
            if key not in copies:
                copies[key] = tensor.detach().clone()
            result[name] = copies[key]
    return result
