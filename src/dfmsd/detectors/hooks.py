"""What modules give during a forward pass, whoever runs it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


class Call(NamedTuple):
    """One call of a module."""

    given: Mapping[str, Any]
    """Arguments that were given by name."""
    output: Any


class Enough(Exception):  # noqa: N818  # no error
    """Ends a forward pass behind the last module that is watched."""


class Watch(AbstractContextManager[Mapping[str, list[Call]]]):
    """Note the calls of modules for as long as the context is open: name -> its last calls, in order, two at most.

    Hooks are there no longer than the context, so that nothing is kept of passes that nobody watches.

    Args:
        modules: by name.
        stop: end the pass as soon as each has been called, by an exception that leaves the context and no further: what
            follows in the model is not run. A model that swallows foreign exceptions runs to its end.
    """

    def __init__(self, modules: Mapping[str, nn.Module], *, stop: bool = False) -> None:
        self.modules = modules
        self.stop = stop
        self.forget()

    def forget(self) -> None:
        """Start anew, and keep no tensor."""
        self.calls: dict[str, list[Call]] = {name: [] for name in self.modules}

    def __enter__(self) -> Mapping[str, list[Call]]:
        """Start to watch."""
        self._hooks = [
            module.register_forward_hook(partial(self._note, name), with_kwargs=True)
            for name, module in self.modules.items()
        ]
        return self.calls

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        """Leave no hook behind."""
        for hook in self._hooks:
            hook.remove()
        return kind is Enough

    def _note(self, name: str, _module: nn.Module, _args: Any, given: Mapping[str, Any], output: Any) -> None:
        self.calls[name] = [*self.calls[name][-1:], Call(given, output)]
        if self.stop and all(self.calls.values()):
            raise Enough


def unwrap(module: nn.Module) -> nn.Module:
    """Give the module inside of ``torch.compile`` and of data parallelism."""
    while is_compiled(module) or isinstance(module, DataParallel | DistributedDataParallel):
        module = module._orig_mod if is_compiled(module) else module.module  # type: ignore[assignment]
    return module


def on_one_device(module: nn.Module) -> nn.Module:
    """Give the module inside of data parallelism, compiled if it is: a pass of one process alone waits for no other."""
    return module.module if isinstance(module, DataParallel | DistributedDataParallel) else module


def is_compiled(module: nn.Module) -> bool:
    """Whether a module comes from ``torch.compile``, which is slow to import only to ask."""
    return isinstance(getattr(module, "_orig_mod", None), nn.Module)
