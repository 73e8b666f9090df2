"""The one mechanism of stair.accelerate: a module changes its class for a subclass with other methods.

The subclass has the name and the module path of the class that it replaces, so that whatever writes them down
(save_pretrained, modules.json) writes what it did before. Parameters, buffers, hooks and the training mode belong to
the module, which stays the same object. Copies and pickles of an accelerated module are accelerated.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

SETTINGS = "_stair_settings"  # the instance attribute that holds a swap's settings
Methods = dict[str, Callable[..., Any]]
KINDS: dict[str, Methods] = {}  # kind of swap -> the methods that it replaces


@dataclass(frozen=True)
class Swap:
    """One module to accelerate."""

    module: nn.Module
    kind: str
    settings: Any = None


def kind(name: str, **methods: Callable[..., Any]) -> None:
    """Names a kind of swap and the methods that it replaces."""
    KINDS[name] = methods


def original_class(module: nn.Module) -> Any:
    """The class that the module had before any swap."""
    return getattr(type(module), "_stair_original", type(module))


def is_swapped(module: nn.Module) -> bool:
    return hasattr(type(module), "_stair_original")


def defines(module: nn.Module, method: str) -> str:
    """The name of the class, among the module's own and its bases, that `method` comes from."""
    return next((base.__name__ for base in original_class(module).__mro__ if method in vars(base)), "")


def check(module: nn.Module, kind: str | None = None) -> None:
    """RuntimeError where a method has been replaced on the instance: the swap, or its undoing, would go unseen."""
    replaced = [name for name in KINDS[kind or vars(type(module))["_stair_kind"]] if name in vars(module)]
    if replaced:
        raise RuntimeError(
            f"{original_class(module).__name__}.{replaced[0]} has been replaced on this instance (the package "
            "accelerate does so); call stair.accelerate before that, stair.restore after undoing it"
        )


def apply(swap: Swap) -> None:
    """Swaps the module's class; on one that is swapped already only the settings change."""
    swap.module.__class__ = _subclass(original_class(swap.module), swap.kind)
    setattr(swap.module, SETTINGS, swap.settings)


def undo(module: nn.Module) -> None:
    """Gives the module its class back."""
    module.__class__ = original_class(module)
    delattr(module, SETTINGS)


@functools.cache
def _subclass(original: Any, kind: str) -> Any:
    members: dict[str, Any] = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "__reduce_ex__": _reduce,
        "_stair_original": original,
        "_stair_kind": kind,
    }
    for name, method in KINDS[kind].items():
        members[name] = _with_signature_of(getattr(original, name), method)
    return type(original)(original.__name__, (original,), members)


def _with_signature_of(original: Callable[..., Any], method: Callable[..., Any]) -> Callable[..., Any]:
    """`method` called by keyword under the original's signature, which trainers read to choose a batch's columns."""
    names = list(inspect.signature(original).parameters)[1:]

    @functools.wraps(original)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return method(self, **dict(zip(names, args)), **kwargs)

    return call


def _reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
    state: tuple[Any, ...] = object.__reduce_ex__(self, protocol)  # type: ignore[assignment]
    return _blank, (self._stair_original, self._stair_kind), *state[2:]


def _blank(original: Any, kind: str) -> nn.Module:
    import stair.adapters  # noqa: F401  (an unpickler starts here, before the kinds are named)

    swapped = _subclass(original, kind)
    return swapped.__new__(swapped)
