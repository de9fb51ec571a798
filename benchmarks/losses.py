"""Cost of each loss, forward and backward over a whole pyramid, compared with other projects and plain formulas.

    python benchmarks/losses.py

All losses get the same tensors in the memory layout of MMDetection. Projects that are not installed have no rows
(`benchmarks/peers.txt`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import torch
from _measure import Median, interleaved_medians, parse_arguments, peak_bytes, write_results
from _peers import LevelLoss, formula, mmrazor_losses
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import dfmsd
from dfmsd import LevelSpec
from dfmsd.engine.allocator import keep_freed_memory
from dfmsd.losses import LossContext

THREADS = 1
CHANNELS = 256
STRIDES = (8, 16, 32, 64, 128)
SHAPES = {"800x1344, batch 2": (2, 800, 1344), "256x256, batch 8": (8, 256, 256)}
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "fitnet": ("fitnet", {}),
    "pkd": ("pkd", {}),
    "cwd": ("cwd", {}),
    "mgd": ("mgd", {}),
    "fgd": ("fgd", {}),
    "dfmsd full": ("dfmsd", {"generation": "full"}),
    "dfmsd light": ("dfmsd", {"generation": "light"}),
    "dfmsd light, stage 2": ("dfmsd", {"generation": "light"}),
}
"""Row -> loss and its options."""


class Pair(NamedTuple):
    """Pyramids of student and teacher with equal shapes, and boxes."""

    student: dict[str, Tensor]
    teacher: dict[str, Tensor]
    boxes: list[Tensor]
    size: tuple[int, int]

    def run(self, terms: list[Tensor]) -> None:
        """Run backward from the sum, and discard the gradients of the features."""
        torch.stack(terms).sum().backward()
        for level in self.student.values():
            level.grad = None


def build_pair(batch: int, height: int, width: int) -> Pair:
    """Draw two random pyramids; the student's requires gradients, as in training."""
    torch.manual_seed(0)
    shapes = {f"p{i}": (batch, CHANNELS, -(-height // s), -(-width // s)) for i, s in enumerate(STRIDES, 3)}
    student = {name: torch.randn(shape).requires_grad_() for name, shape in shapes.items()}
    corners = torch.rand(batch, 8, 2) * torch.tensor([width, height]) * 0.7
    boxes = list(torch.cat([corners, corners + torch.rand(batch, 8, 2) * min(height, width) * 0.3 + 8], dim=2))
    return Pair(student, {name: torch.randn(shape) for name, shape in shapes.items()}, boxes, (height, width))


def no_correlation(*_: Tensor) -> None:
    """Replace the correlations of `Criterion.diagnostics`, which the references do not compute."""


def dfmsd_step(row: str, pair: Pair) -> Callable[[], None]:
    """Return a step of one of dfmsd's losses, without the correlations, which other projects do not compute."""
    name, options = LOSSES[row]
    levels = [LevelSpec(level, CHANNELS, stride) for level, stride in zip(pair.student, STRIDES, strict=True)]
    criterion = dfmsd.losses.build(name, levels, levels, **options)
    stage = 2 if row.endswith("stage 2") else 1

    def step() -> None:
        with mock.patch("dfmsd.losses.criterion.pearson", new=no_correlation):
            terms = criterion(pair.student, pair.teacher, boxes=pair.boxes, size=pair.size, stage=stage)
        pair.run(list(terms.values()))
        criterion.zero_grad()

    return step


def reference_step(build: Callable[[LossContext], tuple[LevelLoss, nn.Module]], pair: Pair) -> Callable[[], None]:
    """Return the same step with a reference loss on each level."""
    contexts = {
        name: LossContext(pair.boxes, pair.size, stride) for name, stride in zip(pair.student, STRIDES, strict=True)
    }
    levels = {name: build(context) for name, context in contexts.items()}

    def step() -> None:
        pair.run([loss(pair.student[name], pair.teacher[name]) for name, (loss, _) in levels.items()])
        for _, layers in levels.values():
            layers.zero_grad()

    return step


def references(pair: Pair) -> dict[tuple[str, str], Callable[[], None]]:
    """Return the steps to compare with: ``(loss, source)`` -> step."""
    steps = {}
    for name in dict.fromkeys(name for name, _ in LOSSES.values()):
        steps[name, "formula"] = reference_step(lambda at, name=name: formula(name, CHANNELS, at), pair)  # type: ignore[misc]
    for name in mmrazor_losses(CHANNELS):
        steps[name, "mmrazor"] = reference_step(lambda _, name=name: mmrazor_losses(CHANNELS)[name], pair)  # type: ignore[misc]
    return steps


def measure(shape: str, repeats: int) -> list[dict[str, Any]]:
    """Measure all losses at one shape, interleaved."""
    pair = build_pair(*SHAPES[shape])
    own = {row: dfmsd_step(row, pair) for row in LOSSES}
    other = references(pair)
    medians = interleaved_medians({**own, **other}, repeats)  # type: ignore[dict-item]
    peaks = {key: peak_bytes(call) for key, call in {**own, **other}.items()}  # type: ignore[dict-item]
    rows = []
    for row, (name, _) in LOSSES.items():
        for key in (key for key in other if key[0] == name):
            rows.append(
                {
                    "loss": row,
                    "shape": shape,
                    "ms": medians[row].wall,
                    "reference": key[1],
                    "reference_ms": medians[key].wall,  # type: ignore[index]
                    "ratio_to_reference": medians[row].wall / medians[key].wall,  # type: ignore[index]
                    "ratio_to_reference_cpu": medians[row].cpu / medians[key].cpu,  # type: ignore[index]
                    "memory_ratio": peaks[row] / peaks[key],  # type: ignore[index]
                    "peak_bytes": peaks[row],
                    **_relative_to_mgd(row, medians),  # type: ignore[arg-type]
                }
            )
    return rows


def _relative_to_mgd(row: str, medians: dict[str, Median]) -> dict[str, float]:
    own, mgd = medians[row], medians["mgd"]
    return {"ratio_to_mgd": own.wall / mgd.wall, "ratio_to_mgd_cpu": own.cpu / mgd.cpu}


def show(rows: list[dict[str, Any]], repeats: int) -> None:
    """Print the rows as a table."""
    title = f"forward + backward of a loss over P3..P7, {CHANNELS} channels, {THREADS} thread, median of {repeats}"
    table = Table(title=title)
    for heading in ("shape", "loss", "ms", "reference", "ms", "time", "time (cpu)", "memory", "to our MGD"):
        table.add_column(heading, justify="left" if heading in ("shape", "loss", "reference") else "right")
    for row in rows:
        ratios = [row[key] for key in ("ratio_to_reference", "ratio_to_reference_cpu", "memory_ratio", "ratio_to_mgd")]
        table.add_row(
            row["shape"],
            row["loss"],
            f"{row['ms']:.1f}",
            row["reference"],
            f"{row['reference_ms']:.1f}",
            *(f"{ratio:.2f}" for ratio in ratios),
        )
    Console(width=140).print(table)


def main() -> None:
    """Measure every shape, print a table and write JSON."""
    options = parse_arguments(__doc__, "losses", repeats=15)
    keep_freed_memory()
    torch.set_num_threads(THREADS)
    rows = [row for shape in SHAPES for row in measure(shape, options.repeats)]
    show(rows, options.repeats)
    configuration = {"channels": CHANNELS, "strides": STRIDES, "repeats": options.repeats}
    write_results(options.out, {"configuration": configuration, "rows": rows})


if __name__ == "__main__":
    main()
