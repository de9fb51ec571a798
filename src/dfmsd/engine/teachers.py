"""Loading of teachers, after training those that are described by a config file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dfmsd.detectors import Detector, build_detector, load_detector
from dfmsd.engine.config import TrainConfig
from dfmsd.engine.configfile import read_config
from dfmsd.engine.saved_config import same_run
from dfmsd.errors import DfmsdError, Stopped
from dfmsd.runfolder import RunFolder
from dfmsd.utils.console import console
from dfmsd.utils.distributed import check_process_counts
from dfmsd.utils.files import check_path


def load_teachers(
    references: Sequence[str],
    class_names: Sequence[str],
    out: Path,
    processes: tuple[int, int] = (1, 1),
    *,
    train: Callable[..., object],
) -> dict[str, Detector]:
    """Load teachers; those described by the YAML file of a training run are trained first unless they already were.

    Args:
        references: see `StageConfig`.
        class_names: of the data.
        out: the student's run folder.
        processes: of the student's run, see `RunConfig.processes`.
        train: trains a teacher, called as `dfmsd.engine.run.train` with a config and ``resume``.

    Raises:
        DfmsdError: a reference is invalid; no teacher has been trained then.
        Stopped: a signal ended the training of a teacher, which the next call resumes.
    """
    for name in references:
        check_path("teacher", name)
    recipes = {name: read_config(TrainConfig, Path(name)) for name in references if name.endswith((".yaml", ".yml"))}
    for name in references:
        folder = Path(recipes[name].out if name in recipes else name)
        if folder.resolve() == out.resolve():
            raise DfmsdError(f"teacher {name}: {folder} is the student's own run folder; choose another `out`")
    for name in references:
        _refuse_unfinished(name)
    loaded = {name: load_detector(name) for name in references if name not in recipes}
    untrained = {name: recipe for name, recipe in recipes.items() if not _is_trained(name, recipe, class_names)}
    check_process_counts({name: recipe.processes for name, recipe in untrained.items()}, processes)
    for name, recipe in untrained.items():
        console.print(f"teacher {name} is trained first, into {recipe.out}")
        try:
            train(recipe, resume=RunFolder(Path(recipe.out)).exists)
        except Stopped:
            console.print(f"teacher {name} is not finished: run the same command again to continue it")
            raise
    return loaded | {name: load_detector(recipe.out) for name, recipe in recipes.items()}


def _refuse_unfinished(name: str) -> None:
    run = RunFolder(Path(name))
    if run.exists and not run.finished:
        raise DfmsdError(
            f"teacher {name}: the run has not finished; continue it with --config {run.config_file} --resume, or name "
            f"{run.weights_file} to use the detector as it is"
        )


def _is_trained(name: str, recipe: TrainConfig, class_names: Sequence[str]) -> bool:
    run = RunFolder(Path(recipe.out))
    if run.exists and not same_run(recipe, run.path):
        raise DfmsdError(f"{run} holds another run than {name} describes; remove it or change `out` in {name}")
    if run.finished:
        return True
    build_detector(recipe.model, class_names)  # refuse what cannot be built before any teacher is trained
    return False
