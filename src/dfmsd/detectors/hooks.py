"""Forward hooks that record what modules receive and return."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


class Call(NamedTuple):
    """One call of a module."""

    kwargs: Mapping[str, Any]
    output: Any


class StopForward(Exception):  # noqa: N818  # not an error
    """Ends a forward pass after the last observed module."""


class FeatureHooks(AbstractContextManager[Mapping[str, list[Call]]]):
    """Record the calls of modules while the context is open: name -> its last calls, in order, at most two.

    The hooks are removed when the context closes.

    Args:
        modules: Modules to observe, by name.
        stop: End the forward pass once every module has been called, so that the rest of the model is not run. This
            raises an exception that the context suppresses; a model that swallows unknown exceptions runs to its end.
    """

    def __init__(self, modules: Mapping[str, nn.Module], *, stop: bool = False) -> None:
        self.modules = modules
        self.stop = stop
        self.clear()

    def clear(self) -> None:
        """Drop the recorded calls and their tensors."""
        self.calls: dict[str, list[Call]] = {name: [] for name in self.modules}

    def __enter__(self) -> Mapping[str, list[Call]]:
        """Register the hooks."""
        self._handles = [
            module.register_forward_hook(partial(self._record, name), with_kwargs=True)
            for name, module in self.modules.items()
        ]
        return self.calls

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        return kind is StopForward

    def _record(self, name: str, _module: nn.Module, _args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        self.calls[name] = [*self.calls[name][-1:], Call(kwargs, output)]
        if self.stop and all(self.calls.values()):
            raise StopForward


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module inside ``torch.compile`` and data-parallel wrappers."""
    while is_compiled(module) or isinstance(module, DataParallel | DistributedDataParallel):
        module = module._orig_mod if is_compiled(module) else module.module  # type: ignore[assignment]
    return module


def unwrap_parallel(module: nn.Module) -> nn.Module:
    """Return the module inside a data-parallel wrapper, still compiled if it is, to run it in one process alone."""
    return module.module if isinstance(module, DataParallel | DistributedDataParallel) else module


def is_compiled(module: nn.Module) -> bool:
    """Return whether ``torch.compile`` made the module, without the slow import of its class."""
    return isinstance(getattr(module, "_orig_mod", None), nn.Module)
