"""Functions around a training: start a config, check it, rank its teachers, estimate, compare and tune."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from dfmsd.api.home import expands_home
from dfmsd.api.runs import resolve_distillation
from dfmsd.api.settings import check_names, check_switches, resolve_config
from dfmsd.api.students import Student, Teachers, resolve_student
from dfmsd.comparison.config import CompareConfig
from dfmsd.data import DataConfig
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.config import DistillConfig
from dfmsd.errors import DfmsdError
from dfmsd.launching.choice import check_launcher
from dfmsd.losses import LossConfig
from dfmsd.recipes.catalog import find_recipe
from dfmsd.starting.outputs import check_files, output_files
from dfmsd.tuning.config import TuneConfig
from dfmsd.utils.coerce import coerce
from dfmsd.utils.extras import check_extra

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from dfmsd.api.settings import DistillChanges, DistillSettings
    from dfmsd.comparison.results import PairResults
    from dfmsd.engine.preflight import Preflight
    from dfmsd.estimation.estimator import Estimate
    from dfmsd.ranking.ranker import Ranking
    from dfmsd.recipes.trial import Trial
    from dfmsd.tuning.outcome import TuneResult

NO_RUN = "runs/student"
"""Run folder of a distillation that is only checked or estimated, whose name those of near teachers begin with."""

# Each function imports the engine itself: importing Lightning takes longer than refusing most bad input.


@expands_home
def init(
    data: str | Path,
    out: str | Path,
    *,
    teacher: str | Path | None = None,
    student: Student | None = None,
    epochs: int | None = None,
    hours: float | None = None,
    overwrite: bool = False,
    allow_weak_teacher: bool = False,
) -> list[Path]:
    """Write the commented YAML file of a first distillation, chosen for the data, the teacher and this machine.

    Args:
        data: data set folder, or ``"digits"``.
        out: YAML file to write, for `distill`, `check` and `estimate`.
        teacher: a reference, as in `distill`; None writes the YAML file of a teacher's training too, next to ``out``,
            and names it as the teacher, which is then trained on first use.
        student: what to train, as in `distill`, but no `Detector`; None chooses.
        epochs: of the student, and of a teacher that is trained first; None chooses.
        hours: time limit of the whole run, with the training of its teacher, which shortens it if necessary.
        overwrite: replace existing files.
        allow_weak_teacher: accept a teacher that knows none of the classes of the data.

    Returns:
        The files written: that of the distillation, and that of the teacher's training.

    Raises:
        DfmsdError: bad input; nothing has been written.
    """
    check_switches(overwrite=overwrite, allow_weak_teacher=allow_weak_teacher)
    epochs = coerce(epochs, int | None, "epochs")
    if epochs is not None and epochs < 1:
        raise DfmsdError(f"epochs must be at least 1, got {epochs}")
    if hours is not None and not 0 < coerce(hours, float, "hours") < math.inf:
        raise DfmsdError(f"hours must be above 0, got {hours}")
    given, detector = (None, None) if student is None else resolve_student(student)
    if detector is not None:
        raise DfmsdError("student: a file cannot hold a Detector; name an architecture or a run folder")
    root, file = coerce(data, str, "data"), Path(coerce(out, str, "out"))
    name = None if teacher is None else coerce(teacher, str, "teacher")
    check_files(output_files(file, name), overwrite=overwrite)

    from dfmsd.starting.starter import start

    return start(
        root,
        file,
        teacher=name,
        student=given,
        epochs=epochs,
        hours=hours,
        allow_weak_teacher=allow_weak_teacher,
    )


@overload
def check(
    config: DistillConfig | str | Path,
    /,
    *,
    allow_weak_teacher: bool = False,
    check_images: int | None = None,
    **settings: Unpack[DistillChanges],
) -> Preflight: ...
@overload
def check(
    student: Student,
    teachers: Teachers,
    data: str | Path | DataConfig,
    out: str | Path = ...,
    *,
    loss: LossConfig = ...,
    allow_weak_teacher: bool = False,
    check_images: int | None = None,
    **settings: Unpack[DistillSettings],
) -> Preflight: ...
@expands_home
def check(
    config: Any = None,
    /,
    teachers: Any = None,
    data: Any = None,
    out: Any = None,
    *,
    allow_weak_teacher: bool = False,
    check_images: int | None = None,
    **settings: Any,
) -> Preflight:
    """Run the pre-flight of a distillation: level pairs, the teachers' AP, parameters and loss scales.

    Called as ``check(config, **settings)`` or as ``check(student, teachers, data, **settings)``. Nothing is trained,
    except teachers that the run makes first and that do not exist yet: near ones, and those described by a config.

    Args:
        config: a `DistillConfig`, or the path of its YAML file.
        student: what would be trained, as in `distill`.
        teachers: as in `distill`.
        data: data set, as in `distill`.
        out: the run folder, whose name those of near teachers begin with.
        allow_weak_teacher: accept a teacher with a low AP.
        check_images: validation images to measure the teachers on; None uses all.
        **settings: keys of `DistillConfig`, such as ``loss``. With a config they replace its values.

    Raises:
        DfmsdError: the run would be refused.
    """
    from dfmsd.engine import run as engine

    check_names(settings, DistillConfig, check)
    if out is None and teachers is not None:
        out = NO_RUN
    resolved, objects = resolve_distillation(config, teachers, data, out, None, settings)
    return engine.check(resolved, allow_weak_teacher=allow_weak_teacher, check_images=check_images, **objects)


@expands_home
def rank_teachers(
    config: DistillConfig | str | Path,
    teachers: Sequence[str | Path] | None = None,
    *,
    steps: int = 200,
    holdout: float = 0.2,
    check_images: int | None = None,
    **settings: Unpack[DistillChanges],
) -> Ranking:
    """Order the teachers that a student could learn from, as ``dfmsd check --rank`` does.

    The student learns from each of them for some steps, with the loss of the first stage that names it and on a part
    of the training images, and is measured on the rest, also without a teacher. Free of training are the other
    predictors: how well a ridge regression reads the teacher's features on objects from the student's, the ratio of
    their parameters, and the teacher's AP. Nothing is written. A single teacher is compared with none.

    Args:
        config: a `DistillConfig`, or the path of its YAML file.
        teachers: their references, instead of those of the stages.
        steps: optimizer steps with each teacher, rounded to whole epochs; 0 leaves these probes out.
        holdout: share of the training images to measure the probes on, unless ``data.holdout`` states one, 0..0.5.
        check_images: images to measure each AP on; None uses all.
        **settings: keys of `DistillConfig` that replace the config's.

    Returns:
        The teachers with their predictors, the best first.

    Raises:
        DfmsdError: no teacher, one that cannot be loaded or does not fit the student, or a value out of range.
    """
    check_names(settings, DistillConfig, rank_teachers)
    if teachers is not None:
        named = coerce(list(teachers) if isinstance(teachers, tuple) else teachers, list[str], "teachers")
        settings["stages"] = stages_of(named)
    resolved = resolve_config(DistillConfig, config, settings)

    from dfmsd.ranking.ranker import rank

    return rank(resolved, steps=steps, holdout=holdout, check_images=check_images)


def stages_of(teachers: Sequence[str]) -> list[StageConfig]:
    """Return a stage for each teacher, each once; their length does not matter for a ranking."""
    return [StageConfig(1, name) for name in dict.fromkeys(teachers)]


@expands_home
def estimate(
    config: DistillConfig | str | Path, *, json: str | Path | None = None, **settings: Unpack[DistillChanges]
) -> Estimate:
    """Estimate the cost of a distillation: FLOPs, memory, time on this machine and GPU hours on COCO.

    Nothing is trained or downloaded.

    Args:
        config: a `DistillConfig`, or the path of its YAML file.
        json: file to write the estimate to.
        **settings: keys of `DistillConfig` that replace the config's.

    Raises:
        DfmsdError: the run would be refused.
    """
    from dfmsd.estimation import estimator
    from dfmsd.utils.files import check_output, to_json, write_output

    check_names(settings, DistillConfig, estimate)
    if json is not None:
        check_output(Path(coerce(json, str, "json")), "`json`")
    found = estimator.estimate(resolve_config(DistillConfig, config, settings))
    if json is not None:
        write_output(Path(json), to_json(found.as_json()))
    return found


@expands_home
def compare(
    config: CompareConfig | str | Path,
    *,
    jobs: int = 1,
    dry_run: bool = False,
    allow_weak_teacher: bool = False,
    **settings: Any,
) -> list[PairResults]:
    """Compare distillation methods over seeds and teacher-student pairs, at an equal budget.

    Finished runs in the output folder are reused and unfinished ones are continued.

    Args:
        config: a `CompareConfig`, or the path of its YAML file.
        jobs: runs at a time, each in a process with its share of the cores.
        dry_run: print the runs and their budgets, and do nothing.
        allow_weak_teacher: accept a teacher that knows none of the classes or has an AP near 0.
        **settings: keys of `CompareConfig` that replace the config's.

    Returns:
        The results of each pair; runs that failed are listed in ``failed``. Empty for a dry run.

    Raises:
        DfmsdError: bad input, or a folder that holds other runs.
    """
    check_names(settings, CompareConfig, compare)
    resolved = resolve_config(CompareConfig, config, settings)
    check_launcher(resolved)

    from dfmsd.comparison import runner

    return runner.compare(resolved, jobs=jobs, allow_weak_teacher=allow_weak_teacher, dry_run=dry_run)


def try_recipe(name: str) -> dict[str, Trial]:
    """Take two training steps of each method of a recipe at full size, with random weights and images.

    `compare` runs its config, ``dfmsd.recipes.catalog.find_recipe(name).file``.

    Args:
        name: as ``dfmsd recipe list`` prints it.

    Returns:
        Method -> peak memory and predicted GPU hours of a run.

    Raises:
        DfmsdError: there is no such recipe, or its detectors cannot be built.
    """
    recipe = find_recipe(coerce(name, str, "name"))

    from dfmsd.recipes import trial

    return trial.try_recipe(recipe)


@expands_home
def tune(
    config: TuneConfig | str | Path,
    *,
    trials: int | None = None,
    hours: float | None = None,
    jobs: int = 1,
    storage: str | None = None,
    dry_run: bool = False,
    allow_weak_teacher: bool = False,
    **settings: Any,
) -> TuneResult | None:
    """Search for the settings of a distillation on held-out training images, with Optuna.

    The best three configurations are repeated with a second seed, and the winner is trained on all training images and
    measured on the val split. Calling it again continues the search; several processes may share one.

    Args:
        config: a `TuneConfig`, or the path of its YAML file, which may be that of a distillation.
        trials: number of trials in total.
        hours: time for everything, instead of trials or besides them.
        jobs: runs at a time, each in a process with its share of the cores.
        storage: URL of the study, such as ``postgresql://user@host/name`` or ``journal:///study.log``; None is an
            SQLite file in ``out``.
        dry_run: print what is searched and about how long it takes, and do nothing.
        allow_weak_teacher: accept a teacher that knows none of the classes or has an AP near 0.
        **settings: keys of `TuneConfig` that replace the config's, such as ``out``.

    Returns:
        The best config, its gain, and what was measured; None for a dry run.

    Raises:
        DfmsdError: bad input, a storage that cannot be reached, or one whose study searches something else.
    """
    check_extra("tune", ["optuna"], "tune")
    check_names(settings, TuneConfig, tune)
    resolved = resolve_config(TuneConfig, config, settings)
    check_launcher(resolved)

    from dfmsd.tuning import tuner

    return tuner.tune(
        resolved,
        trials=trials,
        hours=hours,
        jobs=jobs,
        storage=storage,
        dry_run=dry_run,
        allow_weak_teacher=allow_weak_teacher,
    )
