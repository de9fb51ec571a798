"""Running a model in eval mode, on its own device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's first parameter or buffer; the CPU if it has neither."""
    return next(chain(module.parameters(), module.buffers()), torch.empty(0)).device


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module and its children into eval mode, and restore the mode of each afterwards."""
    training = [child for child in module.modules() if child.training]
    if training:
        module.eval()
    try:
        yield
    finally:
        for child in training:
            child.training = True
