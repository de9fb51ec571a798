"""torch.compile for the parts of a training step whose shapes follow from the shape of the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dfmsd.errors import DfmsdError, foreign_message

Backend = str | Callable[..., Any]
"""Of ``torch.compile``."""


class CompiledParts:
    """Modules that run compiled inside `active`, and as they are everywhere else.

    So evaluation, checks, exports and whoever gets the student afterwards see the plain modules, and their keys in
    checkpoints never change. ``Module.compile`` would compile their hooks too, which come and go, and cannot be undone.

    Gradients inside the graph cannot be measured where a part is compiled: its backward pass overwrites what the
    forward pass saved, and so runs only once, and among its own outputs, such as the levels p5 and p6 of a neck, no
    gradient flows from one to the other.

    Args:
        frozen: modules without a backward pass; one module may occur several times.
        trained: modules with one.
        backend: of ``torch.compile``.
    """

    def __init__(self, frozen: Iterable[nn.Module], trained: Iterable[nn.Module], backend: Backend) -> None:
        self._frozen, self._trained = (
            {module: torch.compile(module.forward, backend=backend) for module in dict.fromkeys(modules)}
            for modules in (frozen, trained)
        )

    @contextmanager
    def active(self, *, measuring: bool) -> Iterator[None]:
        """Let calls of the modules run compiled.

        Args:
            measuring: whether gradients inside the graph are measured; the trained modules then run as they are.
        """
        compiled = self._frozen if measuring else self._frozen | self._trained
        before: dict[nn.Module, Callable[..., Any] | None] = {}
        try:
            for module, forward in compiled.items():
                before[module] = vars(module).get("forward")
                module.forward = forward  # hides the method of the class
            yield
        finally:
            for module, own in before.items():
                del module.forward
                if own is not None:
                    module.forward = own


def check_compiler(device: torch.device, backend: Backend = "inductor") -> None:
    """Refuse ``compile`` where ``torch.compile`` does not work, by compiling a sum.

    Raises:
        DfmsdError: there is no C++ compiler, or no Triton for the GPU, or they fail.
    """
    try:
        torch.compile(lambda value: value + 1, backend=backend)(torch.zeros(1, device=device))
    except Exception as error:  # of the compiler, of several libraries
        needed = "a C++ compiler such as g++" if device.type == "cpu" else "Triton and a C++ compiler such as g++"
        failure = foreign_message(error)
        raise DfmsdError(
            f"compile: torch.compile needs {needed}, and failed ({failure}); install them, or leave compile out"
        ) from error
