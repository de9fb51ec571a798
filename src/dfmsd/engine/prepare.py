"""A run up to its task: data, labeler, student, teachers and losses, and the pre-flight that measures them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from dfmsd.data.datamodule import CocoDataModule
from dfmsd.detectors import Detector
from dfmsd.detectors.classnames import with_names
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine.build import read_data
from dfmsd.engine.config import DistillConfig, Recipe
from dfmsd.engine.fingerprints import PROCESSES, Inputs, fingerprint_data, fingerprint_teachers
from dfmsd.engine.near import expand
from dfmsd.engine.nearchoice import Settled, describe
from dfmsd.engine.preflight import Preflight, preflight, refuse_weak_teachers
from dfmsd.engine.pseudo import describe_pseudo, find_labeler
from dfmsd.engine.rng import seed_everything
from dfmsd.engine.teachercache import CachePlan
from dfmsd.engine.teachers import FoundTeachers
from dfmsd.utils.coerce import AUTO
from dfmsd.utils.console import console
from dfmsd.utils.device import default_device
from dfmsd.utils.distributed import is_first_process

BuildTask = Callable[..., DistillationTask]
"""`dfmsd.engine.run.build_task`, with the student and what it needs to make teachers."""


class TeacherCheck(NamedTuple):
    """How teachers are checked before they teach."""

    weak_allowed: bool
    """Accept an AP of about 0, or below the student's."""
    images: int | None
    """Validation images that AP is measured on; None for all."""


class Prepared(NamedTuple):
    """A run up to its task, before anything is measured."""

    config: DistillConfig
    """Without near teachers, whose stages are ordinary ones now."""
    data: CocoDataModule
    task: DistillationTask
    teachers: Mapping[str, Detector]
    """Those that were passed, and the labeler if it was loaded."""
    found: FoundTeachers
    """The labeler, loaded or still to be made."""
    inputs: Inputs
    """What the run depends on besides its config; known to the first process alone."""

    def labeler(self, make: Callable[..., object]) -> Detector:
        """Return the detector that labels images, making it if need be."""
        assert self.config.labeler is not None
        detector = {**self.found.make(make), **self.teachers}[self.config.labeler]
        return with_names(detector, self.config.teacher_classes)


def with_precision(config: DistillConfig) -> DistillConfig:
    """Replace the precision ``auto`` by that of this machine, and print it unless it is float32."""
    if config.precision == AUTO and config.chosen_precision != "32" and is_first_process():
        console.print(
            f"precision: {config.chosen_precision}, which this GPU has; 32 computes in float32", highlight=False
        )
    return replace(config, precision=config.chosen_precision)


def prepare(
    settled: Settled,
    build: BuildTask,
    teachers: Mapping[str, Detector] | None,
    recipes: Mapping[str, Recipe] | None,
    teacher_check: TeacherCheck,
    *,
    early: bool,
    check_inputs: Callable[[Inputs], object] = lambda inputs: None,
) -> Prepared:
    """Read the data of a run, print what it makes first, and build its task.

    Args:
        settled: the run.
        build: builds its task.
        teachers: detectors by the names that the stages refer to.
        recipes: configs of teachers to make first, by the run folders that the stages refer to.
        teacher_check: how teachers are checked.
        early: refuse weak teachers before missing ones are made.
        check_inputs: called in the first process with what the run depends on, before missing teachers are made and
            again with them.

    Raises:
        DfmsdError: data, student, teachers and losses do not fit together.
    """
    config, near = expand(settled.config)
    data = read_data(config)
    inputs: dict[str, str | int] = {}
    if is_first_process():
        inputs |= {**fingerprint_data(data), PROCESSES: config.world_size}
        check_inputs(inputs)
    recipes = {**(recipes or {}), **near}
    found = find_labeler(config, data, teachers, recipes)
    _print_plan(settled, near, data, found)
    teachers = {**(teachers or {}), **found.loaded}
    refuse = partial(refuse_weak_teachers, data=data, images=teacher_check.images, device=default_device())

    def note(detectors: Mapping[str, Detector]) -> None:
        if is_first_process():
            inputs.update(fingerprint_teachers(detectors))
            check_inputs(inputs)

    task = build(
        config,
        data.class_names,
        teachers=teachers,
        recipes=recipes,
        before_making=refuse if early and not teacher_check.weak_allowed else None,
        when_loaded=note,
    )
    return Prepared(config, data, task, teachers, found, inputs)


def measure(prepared: Prepared, teacher_check: TeacherCheck, cache: CachePlan | None) -> Preflight:
    """Run the pre-flight of a run, whose random numbers depend on the seed alone.

    Args:
        prepared: the run.
        teacher_check: how teachers are checked.
        cache: of the teachers' features, to be measured too; None without.

    Raises:
        DfmsdError: the run would teach nothing.
    """
    seed_everything(prepared.config.seed)
    return preflight(
        prepared.task,
        prepared.data,
        images=teacher_check.images,
        allow_weak_teacher=teacher_check.weak_allowed,
        device=default_device(),
        cache=cache,
    )


def _print_plan(settled: Settled, recipes: Mapping[str, Recipe], data: CocoDataModule, labeler: FoundTeachers) -> None:
    """Print what near teachers a run makes, and why not, and what it labels, before it starts."""
    if is_first_process():
        near = describe(settled.config, recipes, data.class_names, data.num_labeled)
        pseudo = describe_pseudo(settled.config, data, next(iter(labeler.loaded.values()), None))
        for line in [*settled.notes, *near, *pseudo]:
            console.print(line, highlight=False)
