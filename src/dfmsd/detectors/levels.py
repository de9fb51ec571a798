"""Pyramid levels of a model, read off a dry run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dfmsd.detectors.inference import device_of, eval_mode
from dfmsd.types import LevelSpec

DRY_RUN_SIZE = 256
"""Side of the dry run's input: a power of two, so that every stride up to 256 divides it."""


@torch.no_grad()
def dry_run(module: nn.Module, side: int = DRY_RUN_SIZE, run: Callable[[Tensor], Any] | None = None) -> Any:
    """Run a model once on a black image in eval mode; its training flags and buffers stay as they were.

    Args:
        module: The model.
        side: Side of the square input, in pixels.
        run: Function of the images that runs the model; None calls the model itself.
    """
    images = torch.zeros(1, 3, side, side, device=device_of(module))
    with eval_mode(module):
        return (run or module)(images)


def observe_dry_run(model: nn.Module, observers: Mapping[nn.Module, Callable[..., None]]) -> None:
    """Run a model once, calling each module's observer with the module, its arguments and its output."""
    handles = [module.register_forward_hook(observer) for module, observer in observers.items()]
    try:
        dry_run(model)
    finally:
        for handle in handles:
            handle.remove()


def read_levels(
    module: nn.Module,
    run: Callable[[Tensor], Any] | None = None,
    *,
    side: int = DRY_RUN_SIZE,
    strides: Sequence[int] | None = None,
) -> tuple[LevelSpec, ...]:
    """Read a pyramid's levels off a dry run.

    Levels are named by stride: ``p3`` has stride ``2 ** 3``, or the nearest to it; a second level of the same name is
    ``p5_2``.

    Args:
        module: The model.
        run: Function of the images that returns the model's feature maps, finest first, as a sequence or a dict; None
            calls the model itself.
        side: Side of the dry run's square input, in pixels.
        strides: Strides of the levels where the model states them; otherwise they follow from the sizes of the maps.
    """
    maps = dry_run(module, side, run)
    maps = list(maps.values() if isinstance(maps, Mapping) else maps)
    levels: list[LevelSpec] = []
    seen: Counter[int] = Counter()
    for value, stride in zip(maps, strides or [side // value.shape[-1] for value in maps], strict=True):
        power = round(math.log2(stride))
        seen[power] += 1
        suffix = f"_{seen[power]}" if seen[power] > 1 else ""
        levels.append(LevelSpec(f"p{power}{suffix}", value.shape[1], stride))
    return tuple(levels)
