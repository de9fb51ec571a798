"""An estimate as tables, with the assumptions that it rests on."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from dfmsd.estimation.estimator import Estimate, assumptions
from dfmsd.estimation.flops import Cost
from dfmsd.estimation.schedules import COCO_EPOCHS, GPUS

PARTS = {
    "student": "student: forward, losses, backward",
    "teacher": "teacher: forward to the neck",
    "stored": "teacher, computed and stored in the cache",
    "cached": "teacher, found in the cache",
    "loss": "loss: forward and backward",
    "update": "clipping and optimiser",
    "load": "load a batch, images seen before",
    "decode": "load a batch, new images",
    "detect": "detect in a batch",
}


def print_estimate(found: Estimate, console: Console) -> None:
    """Print costs, times, prediction and GPU hours as tables."""
    console.print(_costs(found))
    console.print(_pyramids(found), highlight=False)
    console.print(_times(found))
    console.print(_summary(found), highlight=False)
    console.print(_hours(found))
    console.print("assumptions:", *assumptions(found), sep="\n- ", highlight=False)


def _costs(found: Estimate) -> Table:
    batch, (height, width) = found.config.data.batch_size, found.frame
    table = Table("stage", "part", title=f"one step, counted: a batch of {batch}, {height} x {width} pixels")
    for name in ("forward\nGFLOPs", "backward\nGFLOPs", "rest, G\nelements", "weights\nMB", "kept\nMB"):
        table.add_column(name, justify="right")
    for number, cost in enumerate(found.costs, 1):
        rows = {"student": cost.student}
        if cost.teacher is not None:
            rows["teacher"] = cost.teacher
        for level, parts in cost.levels.items():
            rows |= {f"align {level}": parts.align, f"generate {level}": parts.method}
        if cost.levels:
            rows["loss"] = cost.loss
        for name, part in rows.items():
            if part != Cost():  # an alignment that has nothing to do
                table.add_row(str(number), name, *_numbers(part), end_section=name == list(rows)[-1])
    return table


def _pyramids(found: Estimate) -> str:
    lines = []
    for number, (cost, cached) in enumerate(zip(found.costs, found.cache_bytes, strict=True), 1):
        line = f"stage {number}: pyramid of the student {_mb(cost.student_pyramid_bytes)} MB a batch"
        if cost.levels:
            line += (
                f", of the teacher {_mb(cost.teacher_pyramid_bytes)} MB; cached as {found.config.teacher_cache_dtype}, "
                f"{cached / 1024:.1f} KiB an image"
            )
        lines.append(line)
    return "\n".join(lines)


def _numbers(part: Cost) -> list[str]:
    operations = [f"{value / 1e9:.3f}" for value in (part.forward, part.backward, part.elementwise)]
    return [*operations, _mb(part.parameter_bytes), _mb(part.kept_bytes)]


def _mb(count: int) -> str:
    return f"{count / 1e6:.2f}"


def _times(found: Estimate) -> Table:
    table = Table("stage", "part", "ms", title="parts, timed on this machine")
    table.columns[2].justify = "right"
    for name, ms in found.parts_ms.items():
        stage, _, part = name.rpartition("/")
        table.add_row(stage, PARTS[part], f"{ms:.1f}")
    return table


def _summary(found: Estimate) -> str:
    run = found.prediction
    lines = [
        f"stage {number}: {stage.epochs} epochs, a step {stage.first_step_ms:.0f} ms in the first and "
        f"{stage.step_ms:.0f} ms in the last"
        for number, stage in enumerate(run.stages, 1)
    ]
    lines.append(
        f"predicted run on this machine: {run.hours:.2f} h for {found.config.epochs} epochs of {run.steps_per_epoch} "
        f"steps ({run.steps:,}) and {run.evaluations} evaluation(s) of {run.evaluation_s:.1f} s"
    )
    return "\n".join(lines)


def _hours(found: Estimate) -> Table:
    single = found.config.precision == "32"
    table = Table(title="COCO on one GPU, projected: hours")
    table.add_column("GPU")
    table.add_column(f"peak TFLOPS, {'float32 or TF32' if single else 'bf16 or fp16'}", justify="right")
    for schedule, epochs in COCO_EPOCHS.items():
        table.add_column(f"{schedule} ({epochs} epochs)", justify="right")
    for name, hours in found.coco_hours.items():
        peak = GPUS[name].single if single else GPUS[name].half
        table.add_row(name, f"{peak:g}", *(f"{value:.2f}" for value in hours.values()))
    return table
