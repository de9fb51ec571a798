"""Loading of teachers, after training or distilling those that a config describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dfmsd.detectors import Detector, build_detector, load_detector
from dfmsd.engine.build import teacher_names
from dfmsd.engine.config import Recipe
from dfmsd.engine.configfile import read_recipe
from dfmsd.engine.saved_config import refuse_another
from dfmsd.errors import DfmsdError, Stopped
from dfmsd.runfolder import RunFolder
from dfmsd.utils.console import console
from dfmsd.utils.distributed import check_process_counts, is_first_process
from dfmsd.utils.files import check_path
from dfmsd.utils.lock import refuse_writer


@dataclass(frozen=True)
class FoundTeachers:
    """Teachers of a run, before those that do not exist yet are made.

    Attributes:
        loaded: reference -> detector.
        recipes: reference -> config, of those that a config describes.
        untrained: the recipes whose runs are not finished, in the order in which they are to be made.
    """

    loaded: dict[str, Detector]
    recipes: dict[str, Recipe]
    untrained: dict[str, Recipe]

    def make(self, train: Callable[..., object]) -> dict[str, Detector]:
        """Make the missing teachers, and return all by reference.

        Args:
            train: makes a teacher, called as `dfmsd.engine.run.make_teacher` with a config and ``resume``.

        Raises:
            Stopped: a signal ended the training of a teacher, which the next call resumes.
        """
        for name, recipe in self.untrained.items():
            run = RunFolder(Path(recipe.out))
            if run.finished:  # in the meantime, as the teacher of another one
                continue
            console.print(f"teacher {name} is trained first, into {run}")
            try:
                train(recipe, resume=run.exists)
            except Stopped:
                console.print(f"teacher {name} is not finished: run the same command again to continue it")
                raise
        return self.loaded | {name: load_detector(recipe.out) for name, recipe in self.recipes.items()}


def load_teachers(
    references: Sequence[str],
    class_names: Sequence[str],
    out: Path,
    processes: tuple[int, int] = (1, 1),
    *,
    train: Callable[..., object],
) -> dict[str, Detector]:
    """Load teachers; those described by a YAML file are made first unless they already were.

    Args:
        references: see `StageConfig`.
        class_names: of the data.
        out: the student's run folder.
        processes: of the student's run, see `RunConfig.processes`.
        train: see `FoundTeachers.make`.

    Raises:
        DfmsdError: a reference is invalid; no teacher has been trained then.
        Stopped: a signal ended the training of a teacher, which the next call resumes.
    """
    return find_teachers(references, class_names, out, processes).make(train)


def find_teachers(
    references: Sequence[str],
    class_names: Sequence[str],
    out: Path,
    processes: tuple[int, int] = (1, 1),
    recipes: Mapping[str, Recipe] | None = None,
) -> FoundTeachers:
    """Load the teachers that exist, and check those that are to be made, with their own teachers.

    Args:
        references: see `StageConfig`.
        class_names: of the data.
        out: the student's run folder.
        processes: of the student's run, see `RunConfig.processes`.
        recipes: reference -> config of teachers without a YAML file.

    Raises:
        DfmsdError: a reference is invalid.
    """
    for name in references:
        check_path("teacher", name)
    described = _described(references, recipes or {})
    for name in references:
        folder = Path(described[name].out if name in described else name)
        if folder.resolve() == out.resolve():
            raise DfmsdError(f"teacher {name}: {folder} is the student's own run folder; choose another `out`")
    for name in references:
        if name not in described:
            refuse_unfinished(name)
    loaded = {name: load_detector(name) for name in references if name not in described}
    untrained = {name: recipe for name, recipe in described.items() if not _is_trained(name, recipe, class_names)}
    check_process_counts({name: recipe.processes for name, recipe in untrained.items()}, processes)
    return FoundTeachers(loaded, described, untrained)


def refuse_unfinished(name: str) -> None:
    """Refuse the folder of a run that has not finished.

    Args:
        name: reference of a teacher; one that is no run folder passes.

    Raises:
        DfmsdError: the run has not finished.
    """
    run = RunFolder(Path(name))
    if run.exists and not run.finished:
        refuse_writer(run.path)
        raise DfmsdError(
            f"teacher {name}: the run has not finished; resume it with {run.config_file}, or name "
            f"{run.weights_file} to use the detector as it is"
        )


def find_recipe(reference: str, recipes: Mapping[str, Recipe]) -> Recipe | None:
    """Return the config that describes a teacher; None for one that exists.

    Args:
        reference: see `StageConfig`.
        recipes: reference -> config of teachers without a YAML file.

    Raises:
        DfmsdError: a YAML file is invalid, or names itself as its teacher.
    """
    return _read_recipe(reference) if _is_yaml(reference) else recipes.get(reference)


def untrained_teacher(
    reference: str, class_names: Sequence[str], recipes: Mapping[str, Recipe] | None = None
) -> Detector:
    """Build a teacher with random weights in place of trained or downloaded ones.

    Args:
        reference: see `StageConfig`.
        class_names: of the data.
        recipes: reference -> config of teachers without a YAML file.

    Raises:
        DfmsdError: the reference is invalid.
    """
    recipe = find_recipe(reference, recipes or {})
    if recipe is None:
        return load_detector(reference, trained=False)
    return build_detector(replace(recipe.as_distillation().student, pretrained=False, init=None), class_names)


def unfinished_recipes(references: Sequence[str], recipes: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """Return the configs of those teachers that a run would make first.

    Args:
        references: see `StageConfig`.
        recipes: reference -> config of teachers without a YAML file.

    Raises:
        DfmsdError: a YAML file is invalid.
    """
    known = _described(references, recipes)
    return {name: recipe for name, recipe in known.items() if not RunFolder(Path(recipe.out)).finished}


def _described(references: Sequence[str], recipes: Mapping[str, Recipe]) -> dict[str, Recipe]:
    known = {name: find_recipe(name, recipes) for name in references}
    return {name: recipe for name, recipe in known.items() if recipe is not None}


def _is_yaml(reference: str) -> bool:
    return reference.endswith((".yaml", ".yml"))


def _read_recipe(name: str, above: Sequence[str] = ()) -> Recipe:
    """Read the YAML file of a teacher; refuse one that is its own teacher, directly or through others."""
    paths = [Path(other).resolve() for other in above]
    if Path(name).resolve() in paths:
        others = above[paths.index(Path(name).resolve()) + 1 :]
        through = f", through {', '.join(others)}" if others else ""
        raise DfmsdError(f"teacher {name} names itself as its teacher{through}; name another one there")
    recipe = read_recipe(Path(name))
    for other in filter(_is_yaml, teacher_names(recipe.as_distillation())):
        _read_recipe(other, [*above, name])
    return recipe


def _is_trained(name: str, recipe: Recipe, class_names: Sequence[str]) -> bool:
    """Return whether a teacher's run is finished; refuse what cannot be made before any teacher is trained."""
    run = RunFolder(Path(recipe.out))
    described = "this teacher's config" if name == recipe.out else name
    refuse_another(recipe, run, f"{described} describes", f"remove it or change its out in {described}")
    if run.finished:
        return True
    if is_first_process():  # of the others, the first one is the writer
        refuse_writer(run.path)
    config = recipe.as_distillation()
    build_detector(config.student, class_names)
    find_teachers(teacher_names(config), class_names, run.path, config.processes)
    return False
