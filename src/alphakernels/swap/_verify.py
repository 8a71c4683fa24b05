"""Compares a swapped module with its original on random inputs: outputs, gradients and buffers, in both modes.

It works on copies without hooks and without dropout, so the module itself, its gradients and the global random streams stay as
they are. The measure is the original in float64, where it runs there. In float64 the swapped module must agree with it to rounding;
in the module's own dtype it must be within the tolerance table of it, or nearly as close as the original in that dtype is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from alphakernels.testing import TOLERANCES, Tolerance, assert_close

from ._rules import Rule
from ._swapped import _HOOKS, Swapped

# Of a tensor's largest element. Deep modules amplify rounding, a thousandfold and more.
_FLOAT64 = Tolerance(0, 1e-9)
_NOISE = 1e-13
# How much further from float64 than the original's worst tensor a tensor may be in the module's dtype.
_FACTOR = 4.0
# Inputs to try. Of a gradient that nearly cancels both sides' errors are noise, and once in a hundred draws the original's is so small by
# luck that ours is more than the factor above it; a kernel that loses precision does so on any inputs.
_DRAWS = 3


class _RoundingError(Exception):
    """In the module's own dtype a tensor is too far from the float64 one."""


def verify(module: nn.Module, rule: Rule) -> tuple[float | None, str | None]:
    """Of a swapped module: (largest relative error in its dtype, None), or (None, what differs)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of no use on small inputs, and a hindrance on a busy machine
    try:
        for draw in range(_DRAWS):
            try:
                return _verify(module, rule, draw)
            except _RoundingError as error:
                reason = f"it differs from the original: {error}"
        return None, reason
    finally:
        torch.set_num_threads(threads)


def _verify(module: nn.Module, rule: Rule, draw: int) -> tuple[float | None, str | None]:
    try:
        with _without_hooks(module):
            ours, theirs = copy.deepcopy(module), copy.deepcopy(module)
    except Exception as error:  # whatever a foreign attribute raises when it is copied
        return None, f"it could not be copied to verify it ({error})"
    for part in theirs.modules():
        if isinstance(part, Swapped):
            part.__class__ = type(part).original
    for part in (*ours.modules(), *theirs.modules()):
        _no_dropout(part)
    weights = next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), torch.zeros(()))
    if weights.is_meta:
        return None, "its weights are on the meta device, where nothing can be compared; verify=False swaps it all the same"
    # cuDNN's recurrences go backward in training alone.
    one_way = weights.is_cuda and any(isinstance(part, nn.RNNBase) for part in theirs.modules())
    generator = torch.Generator().manual_seed(draw)
    inputs = rule.example(module, lambda *sizes: torch.randn(*sizes, generator=generator, dtype=torch.float64))
    originals = {weights.dtype: theirs, torch.float64: _in_float64(theirs)}
    swapped = {weights.dtype: ours, torch.float64: _in_float64(ours)}
    worst = 0.0
    for training in (False, True):
        right = {}
        for dtype, m in originals.items():
            try:
                right[dtype] = _everything(m.train(training), inputs, weights.device, dtype, training or not one_way)
            except Exception as error:
                if dtype == weights.dtype:
                    return None, f"the original cannot run on the inputs it would be verified with: {error}"
                # Some originals mix dtypes up, and run in their own alone.
        try:
            found = {
                t: _everything(m.train(training), inputs, weights.device, t, training or not one_way) for t, m in swapped.items() if t in right
            }
        except Exception as error:
            return None, f"it fails where the original runs: {error}"
        try:
            worst = max(worst, _compare(found, right, weights.dtype))
        except AssertionError as error:
            return None, f"it differs from the original: {error}"
    return worst, None


Named = dict[str, Tensor]


def _compare(found: dict[torch.dtype, Named], right: dict[torch.dtype, Named], dtype: torch.dtype) -> float:
    """The largest relative error in `dtype`.

    Raises:
        AssertionError: too large, or of another shape.
        _RoundingError: too large in `dtype`, though right in float64.
    """
    if torch.float64 not in right:
        return _compare_alone(found[dtype], right[dtype], dtype)
    exact, worst = right[torch.float64], 0.0
    errors = {name: _error(right[dtype][name], tensor) for name, tensor in exact.items()}
    # A gradient that cancels, such as that of a bias in front of a norm, is rounding noise of the others.
    noise = _NOISE * max((_largest(t) for name, t in exact.items() if name.startswith("gradient")), default=0.0)
    rounding = max((error for error in errors.values() if error < 1), default=0.0)
    for name, tensor in exact.items():
        ours = found[dtype][name]
        if errors[name] >= 1 and ours.shape == tensor.shape:
            continue  # rounding noise in the original: the gradient of a bias which a norm cancels, say
        assert_close(name, found[torch.float64][name], tensor, tolerance=_FLOAT64._replace(absolute=noise))
        if dtype == torch.float64:
            worst = max(worst, _error(ours, tensor) if _largest(tensor) > noise else 0.0)
            continue
        table = TOLERANCES.get(dtype, Tolerance(0, 0))
        try:
            assert_close(name, ours, tensor, tolerance=table._replace(of_largest=max(table.of_largest, _FACTOR * rounding)))
        except AssertionError as error:
            raise _RoundingError(str(error)) from None
        worst = max(worst, _error(ours, tensor))
    return worst


def _compare_alone(found: Named, right: Named, dtype: torch.dtype) -> float:
    """The same with an original that does not run in float64, both sides rounding."""
    table = TOLERANCES.get(dtype, Tolerance(0, 0))
    for name, tensor in right.items():
        assert_close(name, found[name], tensor, tolerance=table._replace(of_largest=_FACTOR * table.of_largest))
    return max(_error(found[name], tensor) for name, tensor in right.items())


def _error(tensor: Tensor, exact: Tensor) -> float:
    """Of the largest element."""
    if tensor.shape != exact.shape or not exact.numel():
        return 0.0
    return _largest(tensor.double() - exact.double()) / (_largest(exact) or 1.0)


def _largest(tensor: Tensor) -> float:
    """The largest magnitude, 0 of none."""
    return tensor.double().abs().max().item() if tensor.numel() else 0.0


def _in_float64(module: nn.Module) -> nn.Module:
    """A copy in float64, with the tensors that a module holds as plain attributes."""
    module = copy.deepcopy(module).double()
    for part in module.modules():
        for name, value in part.__dict__.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                part.__dict__[name] = value.double()
    return module


def _everything(module: nn.Module, inputs: tuple[Any, ...], device: torch.device, dtype: torch.dtype, backward: bool) -> Named:
    """Outputs, buffers afterwards and, with `backward`, the gradients of a fixed combination of the outputs, by name."""
    leaves = [t.to(device, dtype).requires_grad_() if isinstance(t, Tensor) else t for t in inputs]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # of what a forward makes for itself
    try:
        # A copy of each goes in: some originals write into their input.
        outputs = list(_tensors(module(*(t.clone() if isinstance(t, Tensor) else t for t in leaves))))
    finally:
        torch.set_default_dtype(before)
    found = {f"output {i}": o.detach() for i, o in enumerate(outputs)}
    found |= {f"buffer {name}": b.clone() for name, b in module.named_buffers()}
    if not backward:
        return found
    generator = torch.Generator().manual_seed(1)
    loss = sum((o * torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o)).sum() for o in outputs)
    wanted = {f"gradient of input {i}": t for i, t in enumerate(leaves) if isinstance(t, Tensor)}
    wanted |= {f"gradient of {name}": p for name, p in module.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    return found | {name: torch.zeros_like(t) if g is None else g for (name, t), g in zip(wanted.items(), gradients, strict=True)}


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)


def _no_dropout(module: nn.Module) -> None:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        module.p = 0.0
    elif isinstance(getattr(module, "dropout", None), float):  # of torch's recurrent and attention modules
        module.dropout = 0.0


@contextmanager
def _without_hooks(module: nn.Module) -> Iterator[None]:
    """Takes all hooks off for the block, so that copying copies none."""
    parts = list(module.modules())
    held = [{name: part.__dict__[name] for name in _HOOKS} for part in parts]
    try:
        for part, hooks in zip(parts, held, strict=True):
            part.__dict__.update({name: type(hook)() for name, hook in hooks.items()})
        yield
    finally:
        for part, hooks in zip(parts, held, strict=True):
            part.__dict__.update(hooks)
