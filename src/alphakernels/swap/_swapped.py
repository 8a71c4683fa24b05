"""What every swapped module is: its original class with another forward, which steps back wherever the original must run.

A fused forward reads the weights of its submodules and does not call them. So it looks, on each call, whether calling them
would have done more: a hook, another class in their place, a forward of their own. Then the original forward runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, ClassVar

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

# A submodule by name, and the class whose forward it must have.
Used = Iterable[tuple[str, nn.Module, type]]


class Swapped:
    """Mixed in front of the original class.

    A subclass gives `fast`, a forward on the kernels, and `uses`, the submodules which `fast` reads without calling them as the
    original does.
    """

    original: ClassVar[type[nn.Module]]

    def uses(self) -> Used:
        return ()

    def obstacle(self) -> str | None:
        """Why this very module cannot be swapped; None if it can."""
        return None

    def fast(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def slow(self, *args: Any, **kwargs: Any) -> Any:
        return type(self).original.forward(self, *args, **kwargs)

    def is_plain(self) -> bool:
        """Whether calling the submodules would do nothing beyond what `fast` does in their place."""
        return all(touched(child, kind) is None for _, child, kind in self.uses())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.fast(*args, **kwargs) if self.is_plain() else self.slow(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> tuple:
        # The class is made at run time, so a pickle names the original and the table it was made by.
        _, _, *rest = super().__reduce_ex__(protocol)
        return (_blank, (type(self).original, type(self).__mro__[1]), *rest)


def touched(child: nn.Module, kind: type) -> str | None:
    """What calling `child` would do beyond the forward of `kind`; None if nothing."""
    if type(child).forward is not kind.forward or "forward" in child.__dict__:
        if kind is Swapped:
            return f"it is a {type(child).__name__} that was not swapped"
        return f"it is a {type(child).__name__}, expected a {kind.__name__}"
    if any(child.__dict__[name] for name in _HOOKS):
        return "it has hooks, which the fused forward would not call"
    return None


@cache
def swapped_class(original: type[nn.Module], mixin: type[Swapped]) -> type:
    """The class that a module of class `original` gets."""
    body = {"original": original, "__doc__": original.__doc__, "__module__": original.__module__}
    return type(original.__name__, (mixin, original), body)


def unswapped_class(cls: type[Swapped]) -> type[nn.Module]:
    """The class that a module had before it was swapped; of a class made from the swapped one since, as torch's parametrizations do, the
    same made from the original."""
    if "original" in cls.__dict__:
        return cls.original
    body = {name: value for name, value in cls.__dict__.items() if name not in ("__dict__", "__weakref__")}
    return type(cls.__name__, tuple(unswapped_class(base) if issubclass(base, Swapped) else base for base in cls.__bases__), body)


def _blank(original: type[nn.Module], mixin: type[Swapped]) -> nn.Module:
    cls = swapped_class(original, mixin)
    return cls.__new__(cls)
