"""``dfmsd init``: from a data set to the YAML file of a first run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from dfmsd.detectors import DetectorConfig, build_detector
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.configfile import parse_config
from dfmsd.estimation.estimator import Estimate, estimate, untrained_task
from dfmsd.starting.budget import epochs_within, hours_of
from dfmsd.starting.draft import Choice, Draft, plain, to_yaml
from dfmsd.starting.facts import Facts, TeacherFacts, describe_teacher, gather
from dfmsd.starting.models import Keys, choose_student, choose_teacher
from dfmsd.starting.numbers import (
    FEW_STEPS,
    choose_batch_size,
    choose_epochs,
    choose_image_size,
    count_steps,
    describe_steps,
)
from dfmsd.starting.outputs import output_files
from dfmsd.starting.plan import describe_facts, plan_data, plan_distillation, plan_training
from dfmsd.utils.durations import HOUR, describe_duration
from dfmsd.utils.files import write_output, write_text

RUNS = Path("runs")
"""Folder of the run folders."""


def start(
    root: str,
    out: Path,
    *,
    teacher: str | None = None,
    student: DetectorConfig | None = None,
    epochs: int | None = None,
    hours: float | None = None,
    allow_weak_teacher: bool = False,
) -> list[Path]:
    """Write the YAML file of a distillation, and that of its teacher's training where there is no teacher.

    Existing files are replaced.

    Args:
        root: Data set folder, or ``digits``.
        out: YAML file to write, whose place `check_files` has checked.
        teacher: Reference, as in `StageConfig`; None trains one first.
        student: What to train; None chooses.
        epochs: Of the student, and of a teacher that is trained first; None chooses.
        hours: Budget of the whole run, with the training of its teacher.
        allow_weak_teacher: Accept a teacher that knows none of the classes of the data.

    Returns:
        The files written: the distillation's, and the teacher's.

    Raises:
        DfmsdError: Bad input, or a run that `dfmsd distill` would refuse.
    """
    files = output_files(out, teacher)
    teacher_file = files[-1]
    facts = gather(root, teacher, allow_weak_teacher=allow_weak_teacher)
    batch_size = int(choose_batch_size(facts).value)
    wanted = choose_epochs(facts.train_images, batch_size, epochs)
    keys = choose_student(facts.teacher, student)
    folder = first_free(RUNS / out.stem)
    model = choose_teacher(DetectorConfig(**plain(keys))) if teacher is None else None
    taught_by = facts.teacher or _untrained(model or {}, facts, str(teacher_file), int(choose_image_size(facts).value))

    def drafts(epochs: Choice, teacher_epochs: Choice) -> dict[Path, Draft]:
        data = plan_data(facts, int(epochs.value))
        found = {out: plan_distillation(facts, taught_by, data, keys, epochs, str(folder))}
        if model is not None:
            training = first_free(RUNS / teacher_file.stem)
            found[teacher_file] = plan_training(data, model, teacher_epochs, str(training))
        return found

    chosen = drafts(wanted, wanted)
    with TemporaryDirectory() as place:
        config = _checked(chosen, Path(place), facts)
        if hours is not None:
            fitting = _within(hours, estimate(config), facts, batch_size)
            length = int(fitting.value)
            chosen = drafts(fitting, Choice(length, describe_steps(facts.train_images, batch_size, length)))
    for file, draft in chosen.items():
        write_output(file, to_yaml(draft, _header(file, out, facts)))
    return files


def first_free(folder: Path) -> Path:
    """Return the folder, or the first of ``<folder>-2``, ``<folder>-3`` and so on that does not exist."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def _untrained(model: Keys, facts: Facts, reference: str, image_size: int) -> TeacherFacts:
    config = DetectorConfig(**{**plain(model), "pretrained": False})
    return describe_teacher(reference, build_detector(config, facts.class_names), image_size)


def _checked(drafts: Mapping[Path, Draft], place: Path, facts: Facts) -> DistillConfig:
    """Return the config of a distillation, of whose teacher a file in ``place`` is written; refuse what would fail."""
    (_, draft), *trainings = drafts.items()
    values = plain(draft)
    for file, training in trainings:
        write_text(place / file.name, to_yaml(training, ()))
        values["stages"][0]["teacher"] = str(place / file.name)
    config = parse_config(DistillConfig, values)
    untrained = replace(config.student, pretrained=False, init=None)
    untrained_task(replace(config, student=untrained), facts.class_names)
    return config


def _within(hours: float, found: Estimate, facts: Facts, batch_size: int) -> Choice:
    planned = found.config.epochs
    epochs = epochs_within(hours, found)
    predicted = hours_of(found, epochs, planned)
    steps = describe_steps(facts.train_images, batch_size, epochs)
    limit = f"{hours:g} hours allow" if epochs < planned else f"as usual; {hours:g} hours allow"
    few = (
        f"; fewer than {FEW_STEPS:,} are few" if count_steps(facts.train_images, batch_size, epochs) < FEW_STEPS else ""
    )
    teacher = ", with the teacher's training" if found.teachers else ""
    return Choice(epochs, f"{steps}; {limit} it: about {describe_duration(predicted * HOUR)} predicted{teacher}{few}")


def _header(file: Path, out: Path, facts: Facts) -> list[str]:
    if file == out:
        todo = f"Next: dfmsd check --config {out}, then dfmsd distill --config {out}"
    else:
        todo = f"The teacher of {out}, which is trained when that first needs it: dfmsd train --config {file}"
    return [*describe_facts(facts), todo]
