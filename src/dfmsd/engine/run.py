"""Training, distillation and pre-flight of a run, from its config."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from dfmsd.detectors import Detector, check_frozen
from dfmsd.distillation.compiled import check_compiler
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine.build import assemble_task, build_student, preserved_modes, teacher_names
from dfmsd.engine.checkpoint import explain_full_disk, find_checkpoint
from dfmsd.engine.config import DistillConfig, Recipe, TrainConfig
from dfmsd.engine.fingerprints import fingerprint_teachers, read_inputs, refuse_changed
from dfmsd.engine.fit import Result, fit
from dfmsd.engine.folder import open_folder, reserved
from dfmsd.engine.loggers import check_loggers
from dfmsd.engine.nearchoice import settle
from dfmsd.engine.preflight import Preflight, print_preflight
from dfmsd.engine.prepare import TeacherCheck, measure, prepare, with_precision
from dfmsd.engine.pseudo import label_images
from dfmsd.engine.rng import preserved_rng
from dfmsd.engine.runconfig import RunConfig
from dfmsd.engine.saved_config import as_started
from dfmsd.engine.teachercache import hits_and_misses, open_caches, plan_caches
from dfmsd.engine.teachers import find_teachers, load_teachers, untrained_teacher
from dfmsd.errors import DfmsdError
from dfmsd.runfolder import RunFolder
from dfmsd.utils.coerce import coerce
from dfmsd.utils.console import console
from dfmsd.utils.device import default_device
from dfmsd.utils.distributed import check_rank, is_first_process

__all__ = ["Result", "build_task", "check", "distill", "load_teachers", "make_teacher", "train"]


def train(config: TrainConfig, *, resume: bool = False, overwrite: bool = False) -> Result:
    """Train a detector on labels alone, with the loop of `distill`.

    Args:
        config: the run.
        resume: continue an unfinished run in ``config.out``.
        overwrite: delete an existing run in ``config.out`` first.

    Raises:
        DfmsdError: invalid input, or a folder that already holds a run.
        Stopped: Ctrl-C, SIGTERM or the like ended the training; the run is saved.
    """
    return distill(config.as_distillation(), resume=resume, overwrite=overwrite, saved_as=config)


def distill(
    config: DistillConfig,
    *,
    no_distill: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    allow_weak_teacher: bool = False,
    check_images: int | None = None,
    student: Detector | None = None,
    teachers: Mapping[str, Detector] | None = None,
    recipes: Mapping[str, Recipe] | None = None,
    saved_as: RunConfig | None = None,
) -> Result:
    """Distill teachers into a student, stage by stage.

    Args:
        config: the run.
        no_distill: train the baseline: the same loop without teachers.
        resume: continue an unfinished run in ``config.out``.
        overwrite: delete an existing run in ``config.out`` first.
        allow_weak_teacher: accept a teacher with an AP of about 0, or below the student's.
        check_images: number of validation images of the pre-flight; None uses all.
        student: a detector to train in place, instead of building ``config.student``.
        teachers: detectors by the names that the stages refer to; all other references are loaded. They are frozen
            during the run and left as they were.
        recipes: configs of teachers to make first, by the run folders that the stages refer to.
        saved_as: config to save in the run folder instead of ``config``.

    Raises:
        DfmsdError: invalid input, or a folder that already holds a run.
        Stopped: Ctrl-C, SIGTERM or the like ended the training; the run is saved, and the student as of the last step
            delivered.
    """
    check_loggers(config.loggers)
    _check_start(config, check_images)
    if config.compile:
        check_compiler(default_device())
    if no_distill:
        if config.epochs_without_labels and is_first_process():
            console.print(_left_out(config), highlight=False)
        config = config.without_teachers()
    run = RunFolder(Path(config.out))
    teacher_check = TeacherCheck(allow_weak_teacher, check_images)
    build = partial(build_task, student=student, allow_weak_teacher=allow_weak_teacher, check_images=check_images)
    make = partial(make_teacher, allow_weak_teacher=allow_weak_teacher, check_images=check_images)
    with (
        reserved(run, saved_as or config, resume=resume, overwrite=overwrite) as first,
        preserved_rng(),
        preserved_modes((teachers or {}).values()),
    ):
        if student is None:
            check_frozen(config.student)
        settled = settle(with_precision(as_started(config, run.path) if resume else config), teachers, recipes)
        saved_as = replace(saved_as, precision=settled.config.precision) if saved_as else settled.config
        former = read_inputs(run) if resume else {}
        check_inputs = partial(refuse_changed, run, former)
        prepared = prepare(settled, build, teachers, recipes, teacher_check, early=first, check_inputs=check_inputs)
        config, data, task = prepared.config, prepared.data, prepared.task
        inputs = {**former, **prepared.inputs}
        checkpoint = find_checkpoint(run.path) if resume else None
        labels = None
        if config.labeler is not None:
            labeler = None if checkpoint else prepared.labeler(make)
            if labeler is not None:
                inputs |= fingerprint_teachers({config.labeler: labeler})
            labels = label_images(config, run, data, labeler)
        cache = plan_caches(task, config, len(data.train))
        if first and any(task.teachers) and checkpoint is None:
            print_preflight(measure(prepared, teacher_check, cache), console)
        if cache is not None:
            open_caches(cache)
        opening = partial(open_folder, run, saved_as, task, checkpoint, inputs, overwrite=overwrite, labels=labels)
        with explain_full_disk(run.path):
            result = fit(config, run, data, task, checkpoint, opening if first else None)
    if first and cache is not None:
        console.print(hits_and_misses(cache), highlight=False)
    return result


def check(
    config: DistillConfig,
    *,
    allow_weak_teacher: bool = False,
    check_images: int | None = None,
    student: Detector | None = None,
    teachers: Mapping[str, Detector] | None = None,
    recipes: Mapping[str, Recipe] | None = None,
) -> Preflight:
    """Run only the pre-flight of `distill`; nothing is written except teachers that are trained on first use.

    Args:
        config: the run.
        allow_weak_teacher: see `distill`.
        check_images: see `distill`.
        student: see `distill`; it is left as it was, unless it inherits from a teacher.
        teachers: see `distill`.
        recipes: see `distill`.

    Raises:
        DfmsdError: the run would be refused.
    """
    _check_start(config, check_images)
    if student is None:
        check_frozen(config.student)
    settled = settle(with_precision(config), teachers, recipes)
    teacher_check = TeacherCheck(allow_weak_teacher, check_images)
    build = partial(build_task, student=student, allow_weak_teacher=allow_weak_teacher, check_images=check_images)
    with preserved_rng(), preserved_modes([*(teachers or {}).values(), *([student] if student else [])]):
        prepared = prepare(settled, build, teachers, recipes, teacher_check, early=True)
        cache = plan_caches(prepared.task, prepared.config, len(prepared.data.train))
        findings = measure(prepared, teacher_check, cache)
    if is_first_process():  # the training of a teacher may have started others
        print_preflight(findings, console)
    return findings


def make_teacher(
    recipe: Recipe, *, resume: bool = False, allow_weak_teacher: bool = False, check_images: int | None = None
) -> Result:
    """Train or distill a teacher that a config describes.

    Args:
        recipe: its config.
        resume: continue the unfinished run in ``recipe.out``.
        allow_weak_teacher: see `distill`.
        check_images: see `distill`.

    Raises:
        DfmsdError: invalid input, or a folder that already holds a run.
        Stopped: a signal ended the training; the run is saved.
    """
    if isinstance(recipe, TrainConfig):
        return train(recipe, resume=resume)
    return distill(recipe, resume=resume, allow_weak_teacher=allow_weak_teacher, check_images=check_images)


def build_task(
    config: DistillConfig,
    class_names: Sequence[str],
    *,
    student: Detector | None = None,
    teachers: Mapping[str, Detector] | None = None,
    recipes: Mapping[str, Recipe] | None = None,
    allow_weak_teacher: bool = False,
    check_images: int | None = None,
    before_making: Callable[[DistillationTask, Collection[str]], None] | None = None,
    when_loaded: Callable[[Mapping[str, Detector]], None] | None = None,
) -> DistillationTask:
    """Build the student, teachers and losses of a run; the weights depend on the seed alone.

    Args:
        config: the run, without near teachers.
        class_names: of the data.
        student: a detector to use instead of building ``config.student``.
        teachers: detectors by the names that the stages refer to; all other references are loaded, or made first.
        recipes: configs of teachers by the run folders that the stages refer to.
        allow_weak_teacher: see `distill`; of teachers that are themselves distilled first.
        check_images: see `distill`; of teachers that are themselves distilled first.
        before_making: called before a teacher is made, with the task, whose missing teachers have random weights, and
            the names of the other teachers.
        when_loaded: called with the detectors that `teacher_names` names, before the task is built of them.

    Raises:
        DfmsdError: student, teachers and data do not fit together.
    """
    given = dict(teachers or {})
    with preserved_rng():
        student = build_student(config, class_names, student)
        missing = [name for name in teacher_names(config) if name not in given]
        found = find_teachers(missing, class_names, Path(config.out), config.processes, recipes)
        if found.untrained:  # losses that do not fit are refused before a teacher is made
            untrained = {name: untrained_teacher(name, class_names, recipes) for name in found.recipes}
            known = {**found.loaded, **given}
            task = assemble_task(replace(config, inherit=False), student, {**untrained, **known})
            if before_making:
                before_making(task, known.keys())
        make = partial(make_teacher, allow_weak_teacher=allow_weak_teacher, check_images=check_images)
        detectors = {**found.make(make), **given}
        if when_loaded:
            when_loaded({name: detectors[name] for name in teacher_names(config)})
        return assemble_task(config, student, detectors)


def _check_start(config: DistillConfig, check_images: int | None) -> None:
    """Refuse what is wrong whatever the data and the detectors."""
    refuse_no_images(check_images)
    check_rank(config.processes)
    config.check_effective_batch(config.world_size)


def _left_out(config: DistillConfig) -> str:
    epochs = len(config.epochs_without_labels)
    return (
        f"baseline: {config.epochs - epochs} epoch(s); the {epochs} without labels are left out, as only a teacher "
        "could teach in them"
    )


def refuse_no_images(check_images: int | None) -> None:
    """Refuse to measure AP on no image; None uses all."""
    if check_images is not None and coerce(check_images, int, "check_images") < 1:
        raise DfmsdError(f"check_images must be at least 1, got {check_images}; leave it out to use all images")
