"""Order of the teachers that a student could learn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfmsd.data.datamodule import CocoDataModule
from dfmsd.detectors import Detector, check_frozen
from dfmsd.detectors.classnames import with_names
from dfmsd.detectors.inference import eval_mode
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine.build import read_data, teacher_names
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.rng import preserved_rng
from dfmsd.engine.run import build_task, load_teachers, refuse_no_images, train
from dfmsd.errors import DfmsdError
from dfmsd.evaluation.evaluate import evaluate, percent
from dfmsd.ranking.probe import probe_config, probe_data, run_probe, steps_per_epoch
from dfmsd.ranking.readout import Readout, read_out
from dfmsd.types import FeaturePyramid
from dfmsd.utils.classes import common_classes
from dfmsd.utils.console import console
from dfmsd.utils.device import default_device

STEPS = 200
"""Optimizer steps of a probe."""
HOLDOUT = 0.2
"""Share of the training images that probes are measured on."""
READ_IMAGES = 200
"""Training images that features are compared on."""


@dataclass(frozen=True)
class RankedTeacher:
    """What was measured of a teacher.

    Attributes:
        name: its reference.
        probe: AP of the student on the held-out images after a short distillation, 0..1; None without probes.
        start: how well the teacher's features are read from those of the student as it starts, and the other way
            round.
        later: the same for a student that has trained for the steps of a probe without a teacher; None without probes.
        parameters: the student's number of parameters over the teacher's.
        ap: AP of the teacher on the validation images at the student's input size, 0..1; None if it has none of the
            data's classes.
    """

    name: str
    probe: float | None
    start: Readout
    later: Readout | None
    parameters: float
    ap: float | None


@dataclass(frozen=True)
class Ranking:
    """Teachers of a student.

    Attributes:
        teachers: the best first: by the AP of their probes, or without probes by how well their features are read
            from the student's.
        alone: AP of the student on the held-out images after the same steps without a teacher, 0..1; None without
            probes.
        steps: optimizer steps of each probe.
        images: number of held-out images.
    """

    teachers: tuple[RankedTeacher, ...]
    alone: float | None
    steps: int
    images: int

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        rows = [
            {
                **asdict(row),
                "start": row.start._asdict(),
                "later": None if row.later is None else row.later._asdict(),
            }
            for row in self.teachers
        ]
        return {**asdict(self), "teachers": rows}


def rank(
    config: DistillConfig,
    *,
    steps: int = STEPS,
    holdout: float = HOLDOUT,
    check_images: int | None = None,
) -> Ranking:
    """Order the teachers of a run's stages for its student.

    Each of them is measured alone, with the loss of the first stage that names it. With a single teacher the probes
    tell whether it helps at all.

    Args:
        config: the run; nothing is written to its folder.
        steps: optimizer steps of each probe, rounded to whole epochs; 0 leaves the probes out.
        holdout: share of the training images to measure the probes on, unless ``data.holdout`` states one.
        check_images: number of images to measure AP on; None uses all.

    Raises:
        DfmsdError: no stage names a teacher, a value is out of range, a teacher cannot be loaded or does not fit the
            student, or there are several processes.
        Stopped: a signal ended a probe.
    """
    names = list(dict.fromkeys(name for stage in config.stages for name in stage.teachers))
    config = replace(config, devices=1, num_nodes=1, teacher_cache=None, data=config.data.labeled_only())
    _check(config, names, steps, holdout, check_images)
    check_frozen(config.student)
    with preserved_rng():
        data = read_data(config)
        held = probe_data(config, steps, holdout, check_images)
        references = dict.fromkeys([*names, *teacher_names(config)])
        found = load_teachers(list(references), data.class_names, Path(config.out), train=train)
        loaded = {name: with_names(teacher, config.teacher_classes) for name, teacher in found.items()}
        configs = {name: probe_config(config, held, max(steps, 1), name) for name in names}
        tasks = {name: build_task(configs[name], data.class_names, teachers=loaded) for name in names}
        alone, trained = _train_alone(config, held, steps) if steps else (None, None)
        rows = []
        for name, task in tasks.items():
            start, later = _read(task, task.student, held), _read(task, trained, held) if trained else None
            ap = _measure(loaded[name], data, check_images)
            probe = run_probe(configs[name], held, task) if steps else None
            rows.append(RankedTeacher(name, probe, start, later, _count(task.student) / _count(loaded[name]), ap))
            measured = f"AP {percent(probe)} after the probe" if steps else "compared with the student"
            console.print(f"teacher {name}: {measured}", highlight=False)
    epochs = next(iter(configs.values())).epochs if steps else 0
    return Ranking(_ordered(rows), alone, epochs * steps_per_epoch(config, held), len(held.val))


def _check(config: DistillConfig, names: Sequence[str], steps: int, holdout: float, images: int | None) -> None:
    if not names:
        raise DfmsdError("rank: no stage has a teacher; name those to order in the stages, or pass them")
    if steps < 0:
        raise DfmsdError(f"rank: a probe needs 0 steps (no probe) or more, got {steps}")
    if not 0 < holdout <= 0.5:
        raise DfmsdError(f"rank: the held-out share must be above 0 and at most 0.5, got {holdout}")
    refuse_no_images(images)
    if config.teacher_size is not None:
        raise DfmsdError("rank: teachers are read at the student's image size; leave out teacher_size")
    if config.world_size > 1:
        raise DfmsdError(f"rank: runs in one process, not in {config.world_size}; start it without torchrun")


def _train_alone(config: DistillConfig, held: CocoDataModule, steps: int) -> tuple[float | None, Detector]:
    baseline = probe_config(config, held, steps, None)
    task = build_task(baseline, held.class_names)
    ap = run_probe(baseline, held, task)
    console.print(f"without a teacher: AP {percent(ap)} after {baseline.epochs * steps_per_epoch(config, held)} steps")
    return ap, task.student


def _read(task: DistillationTask, student: Detector, held: CocoDataModule) -> Readout:
    (lesson,) = task.lessons
    device = default_device()
    student.to(device)
    lesson.teacher.to(device)
    pairs = list(dict.fromkeys(lesson.criterion.pairs))  # several methods of a sum share pairs
    batches = (batch.to(device) for batch in held.sample_batches(READ_IMAGES))
    return read_out(pairs, batches, partial(_features, student), lesson.teacher.features)


@torch.no_grad()
def _features(detector: Detector, images: Tensor) -> FeaturePyramid:
    with eval_mode(detector):
        return detector.features(images)


def _measure(teacher: Detector, data: CocoDataModule, images: int | None) -> float | None:
    if not common_classes(teacher.class_names, data.class_names):
        return None
    return evaluate(teacher, data.val_dataloader(), limit=images, device=default_device())["AP"]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _ordered(rows: Sequence[RankedTeacher]) -> tuple[RankedTeacher, ...]:
    def key(row: RankedTeacher) -> tuple[float, float]:
        read = (row.later or row.start).teacher
        return (row.probe or 0.0, -math.inf if read is None else read)

    return tuple(sorted(rows, key=key, reverse=True))
