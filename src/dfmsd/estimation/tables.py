"""Tables of an estimate and its assumptions."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from dfmsd.estimation.assumptions import assumptions
from dfmsd.estimation.estimator import Estimate
from dfmsd.estimation.flops import Cost
from dfmsd.estimation.schedules import COCO_EPOCHS, GPUS
from dfmsd.utils.durations import HOUR, describe_duration

PARTS = {
    "student": "student: forward, losses, backward",
    "pyramid": "student without labels: forward to the neck, backward",
    "teacher": "teacher: forward to the neck",
    "stored": "teacher, computed and stored in the cache",
    "cached": "teacher, read from the cache",
    "loss": "loss: forward and backward",
    "update": "clipping and optimizer",
    "load": "load a batch, images loaded before",
    "decode": "load a batch, new images",
    "detect": "detect in a batch",
    "label": "find pseudo-labels in a batch",
}


def print_estimate(estimate: Estimate, console: Console) -> None:
    """Print plan, costs, times, prediction and GPU hours."""
    for line in estimate.plan:
        console.print(line, highlight=False)
    console.print(_costs(estimate))
    console.print(_pyramids(estimate), highlight=False)
    console.print(_times(estimate))
    console.print(_summary(estimate), highlight=False)
    console.print(_hours(estimate))
    console.print("assumptions:", *assumptions(estimate.config), sep="\n- ", highlight=False)


def _costs(estimate: Estimate) -> Table:
    batch, (height, width) = estimate.config.data.batch_size, estimate.frame
    seen = estimate.config.teacher_size
    pixels = f"{height} x {width} pixels" + ("" if seen is None else f", for the teachers {seen} x {seen}")
    several = estimate.config.per_step
    what = "step" if several == 1 else f"of the {several} batches of a step"
    table = Table("stage", "part", title=f"one {what}, counted, batch of {batch}, {pixels}")
    for name in ("forward\nGFLOPs", "backward\nGFLOPs", "rest, G\nelements", "weights\nMB", "saved\nMB"):
        table.add_column(name, justify="right")
    for number, cost in enumerate(estimate.costs, 1):
        rows = {"student": cost.student}
        if cost.teacher is not None:
            rows["teacher"] = cost.teacher
        for level, parts in cost.levels.items():
            rows |= {f"align {level}": parts.align, f"generate {level}": parts.method}
        if cost.levels:
            rows["loss"] = cost.loss
        for name, part in rows.items():
            if part != Cost():  # an alignment without any operation
                table.add_row(str(number), name, *_numbers(part), end_section=name == list(rows)[-1])
    return table


def _pyramids(estimate: Estimate) -> str:
    lines = []
    for number, (cost, cached) in enumerate(zip(estimate.costs, estimate.cache_bytes, strict=True), 1):
        line = f"stage {number}: student pyramid {_mb(cost.student_pyramid_bytes)} MB per batch"
        if cost.levels:
            line += (
                f", teacher pyramid {_mb(cost.teacher_pyramid_bytes)} MB; cached as "
                f"{estimate.config.teacher_cache_dtype}, {cached / 1024:.1f} KiB per image"
            )
        lines.append(line)
    return "\n".join(lines)


def _numbers(part: Cost) -> list[str]:
    operations = [f"{value / 1e9:.3f}" for value in (part.forward, part.backward, part.elementwise)]
    return [*operations, _mb(part.parameter_bytes), _mb(part.kept_bytes)]


def _mb(count: int) -> str:
    return f"{count / 1e6:.2f}"


def _times(estimate: Estimate) -> Table:
    table = Table("stage", "part", "ms", title="parts, timed on this machine")
    table.columns[2].justify = "right"
    for name, ms in estimate.parts_ms.items():
        stage, _, part = name.rpartition("/")
        table.add_row(stage, PARTS[part], f"{ms:.1f}")
    return table


def _summary(estimate: Estimate) -> str:
    run = estimate.prediction
    lines = [
        f"stage {number}: {stage.epochs} epochs, {stage.first_step_ms:.0f} ms per step in the first and "
        f"{stage.step_ms:.0f} ms in the last"
        for number, stage in enumerate(run.stages, 1)
    ]
    lines.append(
        f"predicted run on this machine: {describe_duration(run.hours * HOUR)} for {estimate.config.epochs} epochs of "
        f"{run.steps_per_epoch} steps ({run.steps:,}) and {run.evaluations} evaluation(s) of {run.evaluation_s:.1f} s"
    )
    if run.labeling_s:
        lines.append(f"of these, pseudo-labels of {estimate.config.labeler}: {describe_duration(run.labeling_s)}")
    limit, epochs = estimate.config.max_hours, estimate.config.epochs
    if limit is not None and run.hours > limit:
        fitting = max(1, int(epochs * limit / run.hours))
        lines.append(f"max_hours: {limit:g} h end the run after about {fitting} of its {epochs} epochs")
    for name, teacher in estimate.teachers.items():
        model = teacher.config.student
        lines.append(
            f"made first: {name}, {model.arch} on {model.backbone}: {describe_duration(teacher.hours * HOUR)} for "
            f"{teacher.config.epochs} epochs of {teacher.prediction.steps_per_epoch} steps"
        )
    if estimate.teachers:
        lines.append(f"predicted in total: {describe_duration(estimate.hours * HOUR)}")
    return "\n".join(lines)


def _hours(estimate: Estimate) -> Table:
    single = estimate.config.chosen_precision == "32"
    table = Table(title="projected hours on COCO with one GPU")
    table.add_column("GPU")
    table.add_column(f"peak TFLOPS, {'float32 or TF32' if single else 'bf16 or fp16'}", justify="right")
    for schedule, epochs in COCO_EPOCHS.items():
        table.add_column(f"{schedule} ({epochs} epochs)", justify="right")
    for name, hours in estimate.coco_hours.items():
        peak = GPUS[name].single if single else GPUS[name].half
        table.add_row(name, f"{peak:g}", *(f"{value:.2f}" for value in hours.values()))
    return table
