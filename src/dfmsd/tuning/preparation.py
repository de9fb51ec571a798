"""What a search makes and measures before its trials: the teachers.

On a cluster the machines of the trials do it: ``python -m dfmsd.tuning.preparation CONFIG``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import yaml

from dfmsd.comparison.teachers import TEACHERS, measure_teachers
from dfmsd.data.datamodule import CocoDataModule
from dfmsd.engine.config import Recipe
from dfmsd.engine.configfile import read_config
from dfmsd.engine.run import make_teacher
from dfmsd.engine.teachers import find_teachers
from dfmsd.launching.child import carry_out
from dfmsd.launching.jobs import run_one
from dfmsd.launching.launcher import Launcher
from dfmsd.launching.watch import await_file
from dfmsd.runfolder import RunFolder
from dfmsd.tuning.config import TuneConfig
from dfmsd.tuning.folder import SearchFolder
from dfmsd.tuning.plans import teachers_of
from dfmsd.tuning.problem import Problem, pose
from dfmsd.utils.console import console
from dfmsd.utils.files import write_text

ALLOW_WEAK = "--allow-weak-teacher"


def make_teachers(problem: Problem, data: CocoDataModule, *, allow_weak: bool) -> None:
    """Make the teachers of all plans that do not exist yet, and measure those of the config on the held-out images.

    Args:
        problem: what is searched.
        data: of a trial.
        allow_weak: accept teachers that know none of the classes or have an AP of about 0.

    Raises:
        DfmsdError: a teacher cannot be made or is too weak.
    """
    path = problem.folder.path
    names = problem.config.teacher_classes
    measure_teachers(_teachers(problem), data, path, console, allow_weak=allow_weak, teacher_classes=names)
    recipes = _recipes(problem)
    make = partial(make_teacher, allow_weak_teacher=allow_weak)
    find_teachers(list(recipes), data.class_names, path / "student", recipes=recipes).make(make)


def is_prepared(problem: Problem) -> bool:
    """Return whether all teachers have been made and measured before, unless one has changed since."""
    file = problem.folder.path / TEACHERS
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    measured = all(any(key.startswith(f"{name} ") for key in known) for name in _teachers(problem))
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
    folder = Path(config.out, "preparation")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", yaml.safe_dump(asdict(config), sort_keys=False))
    console.print(f"the teachers are made and measured first: {folder}", highlight=False)
    arguments = ["-m", "dfmsd.tuning.preparation", str(folder / "config.yaml")]
    run_one(launcher, arguments + [ALLOW_WEAK] * allow_weak, folder)
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
    sys.exit(carry_out(lambda: _main(Path(sys.argv[1]), allow_weak=ALLOW_WEAK in sys.argv)))
