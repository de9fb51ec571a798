"""Overhead of a distillation step in time and memory, compared with its minimum.

The minimum is the student's own training step, the teacher's forward pass up to its neck, and the bare convolutions of
alignment and generation, forward and backward, with the same shapes; the rest is overhead. With a teacher cache, the
teacher's forward pass is not part of the minimum. The optimizer step is excluded from both.

A rotated stage imitates the teacher in the student's basis. Its step is compared with the same step without rotation,
and the fit at the start of the stage is timed.

    python benchmarks/step_overhead.py
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import torch
from _measure import interleaved_medians, parse_arguments, peak_bytes, write_results
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import dfmsd
from dfmsd import DetectorConfig, DistillationTask, FrozenTeacher, StageConfig, Target
from dfmsd.distillation.cache import Layout, TeacherCache
from dfmsd.engine.allocator import keep_freed_memory
from dfmsd.losses.basis import FIT_IMAGES, BasisName
from dfmsd.utils.cachedir import GIB
from dfmsd.utils.store import RamStore

CLASSES = tuple(f"class {i}" for i in range(7))
STUDENTS = (
    DetectorConfig("fcos", "mobilenetv3_small_050", fpn_channels=64, head_convs=2),
    DetectorConfig("fcos", "tf_efficientnet_lite0", fpn_channels=64, head_convs=4),
)
TEACHER = DetectorConfig("faster_rcnn", "tf_efficientnet_lite2", fpn_channels=64)
STAGES = (1, 2)
GENERATIONS = ("light", "full")
BATCH, SIDE, BOXES = 8, 192, 6
KEYS = tuple(f"image-{i}" for i in range(BATCH))
THREADS = 1
FITS = 3
"""Fits of a rotation that are timed."""


class Setup(NamedTuple):
    """Inputs and tasks of a step, with shared weights."""

    plain: DistillationTask
    """The student without a teacher, as with ``--no-distill``."""
    distilled: DistillationTask
    rotated: DistillationTask
    """``distilled`` with its teacher in the student's basis."""
    teacher: FrozenTeacher
    images: Tensor
    targets: list[Target]


def build(student_config: DetectorConfig, stage: int, generation: str) -> Setup:
    """Build student, teacher and both tasks with random weights, and a batch in the memory layout of training."""
    loss = {"name": "dfmsd", "generation": generation}
    torch.manual_seed(0)
    student = dfmsd.build_detector(student_config, CLASSES)
    teacher = FrozenTeacher(dfmsd.build_detector(TEACHER, CLASSES), TEACHER.backbone)
    teacher.detector.to(memory_format=torch.channels_last)
    stages = [StageConfig(epochs=1) for _ in range(stage)]
    plain = DistillationTask(student, stages, [()] * stage, loss)

    def taught(basis: BasisName) -> DistillationTask:
        plan = [*stages[1:], StageConfig(epochs=1, basis=basis)]
        return DistillationTask(student, plan, [(teacher,)] * stage, loss).to(memory_format=torch.channels_last)

    distilled, rotated = taught("own"), taught("student")
    for task in (plain, distilled, rotated):
        task.train().enter_stage(stage - 1)
    levels = tuple(pair.teacher for pair in distilled.lessons[0].criterion.pairs)
    teacher.cache = TeacherCache(RamStore(GIB), Layout(levels, (SIDE, SIDE)))
    images = torch.rand(BATCH, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    return Setup(plain, distilled, rotated, teacher, images, [random_target() for _ in range(BATCH)])


def random_target() -> Target:
    """Draw boxes of 12 to 64 pixels."""
    sides = torch.empty(BOXES, 2).uniform_(12, 64)
    corners = torch.rand(BOXES, 2) * (SIDE - sides)
    return {"boxes": torch.cat([corners, corners + sides], dim=1), "labels": torch.randint(len(CLASSES), (BOXES,))}


def training_step(task: DistillationTask, setup: Setup, keys: tuple[str, ...] = ()) -> None:
    """Run one step without the optimizer: forward, losses and backward; the gradients are discarded.

    With ``keys``, the teacher's features come from its cache.
    """
    torch.stack(list(task(setup.images, setup.targets, keys).values())).sum().backward()
    task.zero_grad()


def teacher_then_plain_step(setup: Setup) -> None:
    """Run the minimum of a distillation step; the teacher's pyramid is discarded."""
    setup.teacher.features(setup.images)
    training_step(setup.plain, setup)


def record_convolutions(setup: Setup) -> list[tuple[nn.Conv2d, Tensor]]:
    """Return each convolution of alignment and generation with its input in a real step."""
    calls: list[tuple[nn.Conv2d, Tensor]] = []

    def record(module: nn.Conv2d, inputs: tuple[Tensor, ...]) -> None:
        calls.append((module, inputs[0].detach().clone().requires_grad_()))

    convolutions = [
        module for module in setup.distilled.lessons[0].criterion.modules() if isinstance(module, nn.Conv2d)
    ]
    hooks = [module.register_forward_pre_hook(record) for module in convolutions]
    training_step(setup.distilled, setup)
    for hook in hooks:
        hook.remove()
    return calls


def bare_convolutions(calls: list[tuple[nn.Conv2d, Tensor]]) -> Callable[[], None]:
    """Return the forward and backward passes of these convolutions as one call."""
    upstream = [torch.ones_like(module(value)) for module, value in calls]

    def run() -> None:
        for (module, value), gradient in zip(calls, upstream, strict=True):
            torch.autograd.grad(module(value), [value, *module.parameters()], gradient)

    return run


def fit(setup: Setup) -> None:
    """Fit the rotations as at the start of a stage, on `FIT_IMAGES` decoded images."""
    setup.rotated.lessons[0].criterion.basis.fitted.fill_(False)
    setup.rotated.fit_bases([setup.images] * (FIT_IMAGES // BATCH))


def measure(student_config: DetectorConfig, stage: int, generation: str, repeats: int) -> dict[str, Any]:
    """Measure one student in one stage and return a row."""
    setup = build(student_config, stage, generation)
    convolutions = record_convolutions(setup)
    fitting = interleaved_medians({"fit": partial(fit, setup)}, FITS, warmup=0)["fit"]
    whole, plain = partial(training_step, setup.distilled, setup), partial(training_step, setup.plain, setup)
    medians = interleaved_medians(
        {
            "distillation_step": whole,
            "cached_step": partial(training_step, setup.distilled, setup, KEYS),
            "student_step": plain,
            "teacher_forward": partial(setup.teacher.features, setup.images),
            "bare_convolutions": bare_convolutions(convolutions),
            "rotated_step": partial(training_step, setup.rotated, setup),
        },
        repeats,
    )
    shapes = Counter(f"{dimensions(value)} * {dimensions(module.weight)}" for module, value in convolutions)
    del convolutions
    gc.collect()
    peaks = {
        "distillation_step": peak_bytes(whole),
        "student_step": peak_bytes(plain),
        "teacher_forward_then_student_step": peak_bytes(partial(teacher_then_plain_step, setup)),
    }
    return {
        "student": asdict(student_config),
        "stage": stage,
        "generation": generation,
        **ratios({name: median.wall for name, median in medians.items()}),
        **{f"{key}_cpu": ratio for key, ratio in ratios({name: m.cpu for name, m in medians.items()}).items()},
        "fit_seconds": fitting.wall / 1e3,
        "fit_seconds_cpu": fitting.cpu / 1e3,
        "memory_ratio": peaks["distillation_step"] / peaks["teacher_forward_then_student_step"],
        "median_ms": {name: median._asdict() for name, median in medians.items()},
        "peak_bytes": peaks,
        "levels": {pair.student.name: pair.teacher.name for pair in setup.distilled.lessons[0].criterion.pairs},
        "convolutions": shapes,
    }


def dimensions(value: Tensor) -> str:
    """Format a shape as ``8x64x24x24``."""
    return "x".join(map(str, value.shape))


def ratios(durations: dict[str, float]) -> dict[str, float]:
    """Compare the whole step with its minimum and with the student's own step."""
    cached_floor = durations["student_step"] + durations["bare_convolutions"]
    whole, cached = durations["distillation_step"], durations["cached_step"]
    return {
        "ratio_to_floor": whole / (cached_floor + durations["teacher_forward"]),
        "ratio_cached_to_floor": cached / cached_floor,
        "ratio_to_plain": whole / durations["student_step"],
        "ratio_cached_to_plain": cached / durations["student_step"],
        "ratio_rotated_to_unrotated": durations["rotated_step"] / whole,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    table = Table(title=f"one distillation step, batch {BATCH}, {SIDE} px, {THREADS} thread; wall (cpu)")
    headings = ("student", "stage", "generation", "step ms", "cached ms", "student ms", "teacher ms", "convolutions ms")
    ratios = ("ratio_to_floor", "ratio_cached_to_floor", "ratio_to_plain", "ratio_cached_to_plain")
    for heading in (*headings, "to floor", "cached to floor", "to plain", "cached to plain", "memory"):
        table.add_column(heading, justify="right")
    for row in rows:
        durations = [milliseconds(median) for name, median in row["median_ms"].items() if name != "rotated_step"]
        relative = [f"{row[key]:.3f} ({row[key + '_cpu']:.3f})" for key in ratios]
        table.add_row(*names(row), *durations, *relative, f"{row['memory_ratio']:.3f}")
    rotation = Table(
        "student", "stage", "generation", "step ms", "rotated ms", "ratio", "fit s", title="a rotated stage"
    )
    for row in rows:
        steps = [milliseconds(row["median_ms"][name]) for name in ("distillation_step", "rotated_step")]
        ratio, fits = (
            f"{row[key]:.3f} ({row[key + '_cpu']:.3f})" for key in ("ratio_rotated_to_unrotated", "fit_seconds")
        )
        rotation.add_row(*names(row), *steps, ratio, fits)
    console = Console(width=180)
    console.print(table)
    console.print(rotation)


def names(row: dict[str, Any]) -> tuple[str, str, str]:
    """Return the cells that name a row."""
    return row["student"]["backbone"], str(row["stage"]), row["generation"]


def milliseconds(median: dict[str, float]) -> str:
    """Format wall time and CPU time."""
    return f"{median['wall']:.0f} ({median['cpu']:.0f})"


def main() -> None:
    """Measure every row, print a table and write JSON."""
    options = parse_arguments(__doc__, "step_overhead", repeats=21)
    keep_freed_memory()
    torch.set_num_threads(THREADS)
    rows = [
        measure(student, stage, generation, options.repeats)
        for student in STUDENTS
        for stage in STAGES
        for generation in GENERATIONS
    ]
    worst = {key: max(row[key] for row in rows) for key in rows[0] if "ratio" in key or "fit_seconds" in key}
    result = {
        **worst,
        "note": "top level: the worst of the rows; ratios are of wall-clock medians, *_cpu of processor time",
        "repeats": options.repeats,
        "configuration": {"teacher": asdict(TEACHER), "loss": "dfmsd", "batch": BATCH, "image_size": SIDE},
        "rows": rows,
    }
    show(rows)
    write_results(options.out, result)


if __name__ == "__main__":
    main()
