"""What a search makes and measures before its trials: the teachers.

On a cluster the machines of the trials do it: ``python -m dfmsd.tuning.preparation CONFIG``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from dfmsd.comparison.teachers import TEACHERS, measure_teachers, were_measured
from dfmsd.data.datamodule import CocoDataModule
from dfmsd.engine.config import Recipe
from dfmsd.engine.configfile import read_config
from dfmsd.engine.fingerprints import refuse_outdated
from dfmsd.engine.run import make_teacher
from dfmsd.engine.teachers import find_teachers
from dfmsd.launching import preparation
from dfmsd.launching.launcher import Launcher
from dfmsd.launching.watch import await_file
from dfmsd.runfolder import RunFolder
from dfmsd.tuning.config import TuneConfig
from dfmsd.tuning.folder import SearchFolder
from dfmsd.tuning.plans import teachers_of
from dfmsd.tuning.problem import Problem, pose
from dfmsd.utils.console import console

MODULE = "dfmsd.tuning.preparation"  # not __name__, which is another one in its own process


def make_teachers(problem: Problem, data: CocoDataModule, *, allow_weak: bool) -> None:
    """Make the teachers of all plans that do not exist yet, and measure those of the config on the held-out images.

    Args:
        problem: what is searched.
        data: of a trial.
        allow_weak: accept teachers that know none of the classes or have an AP of about 0.

    Raises:
        DfmsdError: a teacher cannot be made or is too weak, or has changed since it taught in a run.
    """
    path = problem.folder.path
    names = problem.config.teacher_classes
    measured = measure_teachers(_teachers(problem), data, path, console, allow_weak=allow_weak, teacher_classes=names)
    refuse_outdated(problem.folder.runs("*"), measured.inputs, "restore it")
    recipes = _recipes(problem)
    make = partial(make_teacher, allow_weak_teacher=allow_weak)
    find_teachers(list(recipes), data.class_names, path / "student", recipes=recipes).make(make)


def is_prepared(problem: Problem) -> bool:
    """Return whether all teachers have been made and measured before, in whatever version and on whatever data."""
    measured = were_measured(_teachers(problem), problem.folder.path)
    return measured and all(RunFolder(Path(name)).finished for name in _recipes(problem))


def prepare_elsewhere(config: TuneConfig, launcher: Launcher, *, allow_weak: bool) -> None:
    """Let another machine make and measure the teachers, and wait for it.

    Args:
        config: of the search.
        launcher: finds the machine.
        allow_weak: as in `make_teachers`.

    Raises:
        DfmsdError: a teacher cannot be made or is too weak.
    """
    what = "the teachers are made and measured first"
    preparation.prepare_elsewhere(MODULE, config, launcher, what, allow_weak=allow_weak)
    await_file(Path(config.out, TEACHERS))


def _teachers(problem: Problem) -> list[str]:
    named = [*teachers_of(problem.config), problem.config.labeler]
    return [name for name in dict.fromkeys(named) if name]


def _recipes(problem: Problem) -> dict[str, Recipe]:
    return {name: recipe for plan in problem.plans.values() for name, recipe in plan.recipes.items()}


def _main(file: Path, *, allow_weak: bool) -> None:
    config = read_config(TuneConfig, file)
    trial = config.as_trial()
    data = CocoDataModule(trial.data, digest=trial.teacher_cache is not None, teacher_size=trial.teacher_size)
    make_teachers(pose(config, data.class_names, SearchFolder(Path(config.out))), data, allow_weak=allow_weak)


if __name__ == "__main__":
    preparation.main(_main)
