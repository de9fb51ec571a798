"""Scaling of the dfmsd loss: time and memory of forward and backward as a function of the input sizes.

python benchmarks/scaling.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from _measure import interleaved_medians, parse_arguments, peak_bytes, print_rows, write_results
from torch import Tensor

from dfmsd import LevelSpec, losses
from dfmsd.types import FeaturePyramid

THREADS = 1
BOXES = 6
"""Objects per image."""


@dataclass(frozen=True)
class Shape:
    """Input sizes that determine the cost."""

    image_size: int = 256
    batch: int = 4
    levels: int = 3
    """With strides 8, 16, ..."""
    channels: int = 64
    """Of student and teacher."""


SWEEPS = {
    "image_size": (128, 192, 256, 384, 512),
    "batch": (1, 2, 4, 8, 16),
    "levels": (2, 3, 4, 5),
    "channels": (16, 32, 64, 128, 256),
}
"""Values of one size, with the others as in `Shape`."""


def loss_step(shape: Shape) -> Callable[[], object]:
    """Return forward and backward of the loss on random pyramids as one call."""
    torch.manual_seed(0)
    levels = [LevelSpec(f"p{power}", shape.channels, 2**power) for power in range(3, 3 + shape.levels)]
    criterion = losses.build("dfmsd", levels, levels).to(memory_format=torch.channels_last)
    student, teacher = random_pyramid(shape, levels), random_pyramid(shape, levels)
    boxes = [random_boxes(shape.image_size) for _ in range(shape.batch)]
    inputs = [value.requires_grad_() for value in student.values()] + list(criterion.parameters())

    def step() -> tuple[Tensor, ...]:
        terms = criterion(student, teacher, boxes=boxes, size=(shape.image_size,) * 2)
        return torch.autograd.grad(torch.stack(list(terms.values())).sum(), inputs)

    return step


def random_pyramid(shape: Shape, levels: list[LevelSpec]) -> FeaturePyramid:
    """Draw features of each level in the memory layout of training."""
    pyramid = {}
    for level in levels:
        side = shape.image_size // level.stride
        value = torch.randn(shape.batch, level.channels, side, side)
        pyramid[level.name] = value.contiguous(memory_format=torch.channels_last)
    return pyramid


def random_boxes(image_size: int) -> Tensor:
    """Draw boxes of 1/16 to 1/3 of the side."""
    sides = torch.empty(BOXES, 2).uniform_(image_size / 16, image_size / 3)
    corners = torch.rand(BOXES, 2) * (image_size - sides)
    return torch.cat([corners, corners + sides], dim=1)


def measure(size: str, repeats: int) -> list[dict[str, Any]]:
    """Measure all values of one size and return rows."""
    shapes = [replace(Shape(), **{size: value}) for value in SWEEPS[size]]
    calls = {str(getattr(shape, size)): loss_step(shape) for shape in shapes}
    medians = interleaved_medians(calls, repeats)
    return [
        {"varied": size, **asdict(shape), "ms": medians[value].wall, "peak_mib": peak_bytes(call) / 2**20}
        for shape, (value, call) in zip(shapes, calls.items(), strict=True)
    ]


def exponent(rows: list[dict[str, Any]], size: str, cost: str) -> float:
    """Fit ``cost ~ size ** exponent`` to the rows by least squares in log space."""
    slope, _ = np.polyfit(np.log([row[size] for row in rows]), np.log([row[cost] for row in rows]), 1)
    return float(slope)


def main() -> None:
    """Measure every sweep, print tables and write JSON."""
    options = parse_arguments(__doc__, "scaling", repeats=21)
    torch.set_num_threads(THREADS)
    sweeps = {size: measure(size, options.repeats) for size in SWEEPS}
    exponents = {
        size: {"time": exponent(rows, size, "ms"), "peak_bytes": exponent(rows, size, "peak_mib")}
        for size, rows in sweeps.items()
    }
    rows = [row for sweep in sweeps.values() for row in sweep]
    print_rows(f"dfmsd loss, forward and backward, {THREADS} thread", rows)
    print_rows("cost ~ size ** exponent", [{"size": size, **fit} for size, fit in exponents.items()])
    results = {"exponents": exponents, "repeats": options.repeats, "configuration": {"boxes": BOXES}, "rows": rows}
    write_results(options.out, results)


if __name__ == "__main__":
    main()
