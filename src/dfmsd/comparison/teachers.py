"""AP and fingerprints of the teachers of a comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from dfmsd.data.datamodule import CocoDataModule
from dfmsd.data.splitcheck import annotated_classes
from dfmsd.detectors import Detector
from dfmsd.detectors.classnames import check_names, with_names
from dfmsd.distillation.checks import check_classes, check_teacher_ap
from dfmsd.engine.fingerprints import VAL, Inputs, fingerprint_data, fingerprint_teachers, teacher_key
from dfmsd.engine.run import make_teacher
from dfmsd.engine.teachers import load_teachers
from dfmsd.evaluation.evaluate import evaluate, percent
from dfmsd.utils.classes import common_classes
from dfmsd.utils.device import default_device
from dfmsd.utils.files import write_json

TEACHERS = "teachers.json"
"""File of the teachers' AP in the folder of a comparison."""


class MeasuredTeachers(NamedTuple):
    """What is known of the teachers of a comparison."""

    aps: dict[str, float | None]
    """Reference -> AP, 0..1; None for a teacher that has none of the data's classes."""
    inputs: Inputs
    """Their fingerprints, as in the runs that they have taught."""


def measure_teachers(
    references: Sequence[str],
    data: CocoDataModule,
    out: Path,
    console: Console,
    *,
    allow_weak: bool,
    teacher_classes: Mapping[str, str] | None = None,
) -> MeasuredTeachers:
    """Load or train the teachers and evaluate them.

    The AP of an unchanged teacher on unchanged data is read from ``teachers.json``.

    Args:
        references: each once, see `StageConfig`.
        data: to evaluate them on.
        out: folder of ``teachers.json``.
        console: for progress.
        allow_weak: accept teachers that know none of the classes or have an AP of about 0.
        teacher_classes: class name of a teacher -> that of the data, as in `DistillConfig`.

    Raises:
        DfmsdError: a teacher cannot be loaded or is too weak.
    """
    path = out / TEACHERS
    known = _read(path)
    size = data.teacher_size or data.config.image_size
    required = annotated_classes([data.train.coco, data.val.coco])
    aps: dict[str, float | None] = {}
    make = partial(make_teacher, allow_weak_teacher=allow_weak)
    loaded = load_teachers(references, data.class_names, out, train=make)
    check_names(teacher_classes, data.class_names, [each.class_names for each in loaded.values()])
    renamed = f" {json.dumps(teacher_classes, sort_keys=True)}" if teacher_classes else ""
    inputs, val = fingerprint_teachers(loaded), fingerprint_data(data)[VAL]
    for name, teacher in loaded.items():
        detector = with_names(teacher, teacher_classes)
        key = f"{name} {inputs[teacher_key(name)]} {val} {size}{renamed}"
        checked = bool(detector.class_names) and not allow_weak
        if checked and (line := check_classes(name, detector.class_names, required)):
            console.print(line, highlight=False)
        if key not in known:
            known[key] = _ap(detector, data)
            write_json(path, known)
        aps[name] = known[key]
        ap = percent(aps[name]) if detector.class_names else "unknown, it has no head"
        console.print(f"teacher {name}: AP {ap}", highlight=False)
        if checked:
            check_teacher_ap(name, aps[name], None)
    return MeasuredTeachers(aps, inputs)


def were_measured(references: Sequence[str], out: Path) -> bool:
    """Return whether `measure_teachers` has measured all of them before, in whatever version and on whatever data."""
    known = _read(out / TEACHERS)
    return all(any(key.startswith(f"{name} ") for key in known) for name in references)


def _read(path: Path) -> dict[str, float | None]:
    known: dict[str, float | None] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return known


def _ap(detector: Detector, data: CocoDataModule) -> float | None:
    if not common_classes(detector.class_names, data.class_names):
        return None
    return evaluate(detector, data.teacher_val_dataloader(), device=default_device())["AP"]
