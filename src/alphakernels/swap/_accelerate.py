"""`accelerate` and `restore`: the walk over a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import nn

from . import _rules
from ._report import Kept, Report, Swap
from ._swapped import Swapped, swapped_class, touched, unswapped_class


def accelerate(model: nn.Module, *, verify: bool = True) -> Report:
    """Makes the modules of a model that have a kernel here run on it, in place.

    Known are Qlib's modules, pytorch-tabnet's, torch's recurrent and encoder layers, and entmax's Sparsemax. A module keeps its
    identity, parameters, buffers, hooks, device, dtype, mode and state_dict; optimizers, wrappers and shared weights notice
    nothing. Where a submodule that a fused forward would pass over gets a hook or another class later, the original forward
    runs from then on.

    Args:
        model: any module; it may itself be one that is swapped.
        verify: compare each module with its original on small random inputs (outputs, gradients and buffers, in training and
            evaluation, without dropout) and leave alone what differs by more than the tolerance table.

    Returns:
        A `Report` of what was swapped, what was not, and why; print it.

    Raises:
        TypeError: `model` is not an nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model must be a torch.nn.Module, got {type(model).__name__}")
    swapped, kept = [], []
    for name, module in _inside_first(model):
        found = None if isinstance(module, Swapped) else _rules.find(module)
        if found is None:
            continue
        original, rule = found
        error, reason = _swap(module, original, rule, verify)
        if reason is None:
            swapped.append(Swap(name, original, error))
        else:
            kept.append(Kept(name, original, reason))
    return Report(swapped, kept, _others(model))


def _others(model: nn.Module) -> dict[str, int]:
    """Modules with weights of their own outside of all that is swapped, by class, those with a rule left out."""
    inside = {id(part) for module in model.modules() if isinstance(module, Swapped) for part in module.modules()}
    return dict(
        Counter(
            _rules.full_name(type(module))
            for module in model.modules()
            if id(module) not in inside and _rules.find(module) is None and any(True for _ in module.parameters(recurse=False))
        )
    )


def _swap(module: nn.Module, original: str, rule: _rules.Rule, verify: bool) -> tuple[float | None, str | None]:
    """Swaps one module: (error seen, None), or (None, why it was left as it was)."""
    before, mixin = type(module), rule.load()
    known = next(cls for cls in before.__mro__ if _rules.full_name(cls) == original)
    if "forward" in module.__dict__:
        return None, "its forward was replaced on the module itself"
    if before.forward is not known.forward:
        return None, f"{_rules.full_name(before)} has a forward of its own"
    module.__class__ = swapped_class(before, mixin)
    reason = module.obstacle()
    if reason is None:
        uses = ((name, touched(child, kind)) for name, child, kind in module.uses())
        reason = next((f"{name}: {why}" for name, why in uses if why is not None), None)
    error = None
    if reason is None and verify:
        from ._verify import verify as compare

        error, reason = compare(module, rule)
    if reason is not None:
        module.__class__ = before
    return error, reason


def restore(model: nn.Module) -> list[str]:
    """Undoes `accelerate`: every module has its own class back, and the weights it has now.

    Returns:
        The names of the modules restored.
    """
    names = []
    for name, module in model.named_modules():
        if isinstance(module, Swapped):
            module.__class__ = unswapped_class(type(module))
            names.append(name)
    return names


def _inside_first(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module once, submodules before the module that holds them."""
    # named_modules goes outside first, and a submodule that two modules share comes under the first of them: in the reverse
    # order it would follow the second.
    seen: set[int] = set()

    def walk(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if id(module) in seen:
            return
        seen.add(id(module))
        for child_name, child in module.named_children():
            yield from walk(f"{name}.{child_name}" if name else child_name, child)
        yield name, module

    return walk("", model)
