"""Argument checks and autocast, shared by the public functions. Messages read `<op>: <what> must be <expected>, got <actual>`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def require(condition: bool, op: str, what: str, expected: str, actual: object, error: type[Exception] = ValueError) -> None:
    """Raises `error` with the one message form of this package unless `condition` holds."""
    if not condition:
        raise error(f"{op}: {what} must be {expected}, got {actual}")


def require_float(op: str, what: str, x: Tensor) -> None:
    """A floating-point tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {what} must be a torch.Tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        require(False, op, what, "a floating-point tensor", x.dtype, TypeError)


def require_rank(op: str, what: str, x: Tensor, rank: int, shape: str) -> None:
    """A tensor of `rank` dimensions."""
    if x.dim() != rank:  # a message is built when it is needed: a small batch feels it
        require(False, op, what, f"of shape {shape}", list(x.shape))


def all_like(tensors: Sequence[object], like: Tensor, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether these are tensors of `like`'s device and dtype and of these shapes."""
    device, dtype = like.device, like.dtype
    for x, shape in zip(tensors, shapes, strict=True):
        if not (isinstance(x, Tensor) and x.shape == shape and x.dtype is dtype and x.device == device):
            return False
    return True


def require_like(op: str, what: str, x: Tensor | None, like: Tensor, shape: tuple[int, ...]) -> None:
    """A tensor of `like`'s device and dtype and of this shape, or None."""
    if x is None or all_like((x,), like, (shape,)):
        return
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {what} must be a torch.Tensor, got {type(x).__name__}")
    require(x.device == like.device, op, what, f"on {like.device}", x.device)
    require(x.dtype == like.dtype, op, what, f"of dtype {like.dtype}", x.dtype, TypeError)
    require(tuple(x.shape) == shape, op, what, f"of shape {list(shape)}", list(x.shape))


def autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Under autocast these ops compute in float32, as torch's softmax and norms do: half-precision tensors are raised to it."""
    first = next(t for t in tensors if t is not None)
    if first.is_meta or not torch.is_autocast_enabled(first.device.type):
        return tensors
    return tuple(t.float() if t is not None and t.dtype in (torch.bfloat16, torch.float16) else t for t in tensors)
