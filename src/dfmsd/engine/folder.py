"""The folder of a new or resumed run: reserved for one process, checked, and created."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dfmsd.distillation.checks import ownership
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine.checkpoint import saved_step, tidy
from dfmsd.engine.environment import describe_environment
from dfmsd.engine.fingerprints import KEY, Inputs
from dfmsd.engine.runconfig import RunConfig
from dfmsd.engine.saved_config import SHOWN_KEYS, differing_keys, to_yaml
from dfmsd.errors import DfmsdError, listed
from dfmsd.runfolder import RunFolder
from dfmsd.utils.console import console
from dfmsd.utils.distributed import is_first_process
from dfmsd.utils.files import write_json, write_text
from dfmsd.utils.lock import empty, locked

SHOWN_FILES = 3
"""Files that are no run's which a refusal names."""


@contextmanager
def reserved(run: RunFolder, config: RunConfig, *, resume: bool, overwrite: bool) -> Iterator[bool]:
    """Keep other runs out of a folder, after `check_folder`.

    Yields:
        Whether this process writes the folder: the first one of the run. The others start when it is no longer empty.

    Raises:
        DfmsdError: another process is writing there, or the folder must not or cannot be used.
    """
    if not is_first_process():
        yield False
        return
    with locked(run.path):
        check_folder(run, config, resume=resume, overwrite=overwrite)
        yield True


def check_folder(run: RunFolder, config: RunConfig, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that the run must not use.

    Raises:
        DfmsdError: the folder holds a run, or none, or another one, against what ``resume`` and ``overwrite`` say.
    """
    if resume and overwrite:
        raise DfmsdError("`resume` keeps what is in the run folder and `overwrite` deletes it; pass one of them")
    if resume and not run.exists:
        raise DfmsdError(
            f"{run} holds no run, so there is nothing to resume; leave out `resume`, or name its folder with `out` if "
            "the run was moved"
        )
    if resume and (keys := differing_keys(config, run.path)):
        raise DfmsdError(
            f"{run.config_file} differs from this config in {listed(keys, SHOWN_KEYS)}; {_remedy(run, keys)}"
        )
    if not resume:
        _refuse_strange(run, config)
    if not resume and not overwrite and run.exists:
        raise DfmsdError(f"{run} already holds a run; pass `resume`, `overwrite` or another `out`")


def _refuse_strange(run: RunFolder, config: RunConfig) -> None:
    """Refuse a folder with other things than a run in it, all of which `overwrite` would delete, now or later."""
    out = run.path.resolve()
    for place in filter(None, (config.data.root, config.data.unlabeled, ".")):
        inside = Path(place).resolve()
        if inside.exists() and out in (inside, *inside.parents):
            what = "the working folder" if place == "." else place
            raise DfmsdError(f"out: {run} is or holds {what}; a run needs a folder of its own, choose another `out`")
    if run.exists:
        if run.is_foreign:
            raise DfmsdError(f"{run.config_file} is not the config of a run; choose another `out`")
        return
    held = sorted(path.name for path in run.path.iterdir() if path.is_dir() or not path.name.startswith("."))
    if held:
        raise DfmsdError(
            f"out: {run} holds {listed(held, SHOWN_FILES)} but no run; a run needs a folder of its own, choose another "
            "`out`"
        )


def _remedy(run: RunFolder, keys: Sequence[str]) -> str:
    if all(key.split(".")[-1] == "epochs" for key in keys):
        return "the learning rate falls over all epochs, so another number is another run: choose another `out`"
    if list(keys) == ["data.root"]:
        return f"if the same data has moved, write its folder into {run.config_file}, and resume it with that file"
    return f"resume it with {run.config_file}"


def open_folder(
    run: RunFolder,
    config: RunConfig,
    task: DistillationTask,
    checkpoint: Path | None,
    inputs: Inputs,
    *,
    overwrite: bool,
    labels: Any = None,
) -> None:
    """Create the run folder with its config and environment, as late as possible: refused input deletes no older run.

    Args:
        run: the folder.
        config: saved there.
        task: its parameters are counted.
        checkpoint: where a resumed run continues.
        inputs: what the run depends on besides its config.
        overwrite: delete an existing run first.
        labels: the teacher's labels of unlabeled images, saved there if given.
    """
    described = to_yaml(config)
    environment = {**describe_environment(), "parameters": ownership(task), KEY: inputs}
    if overwrite and run.exists:
        empty(run.path, last=run.config_file.name)
    # a finished run may continue, with more patience or time
    for finished in (run.metrics_file, run.average_metrics_file, run.test_metrics_file):
        finished.unlink(missing_ok=True)
    tidy(run.path, checkpoint)
    if checkpoint is not None and checkpoint == run.previous_checkpoint:
        step = saved_step(checkpoint)
        console.print(f"the last checkpoint is damaged; resuming from the one before it, step {step}", highlight=False)
    write_text(run.config_file, described)
    write_json(run.environment_file, environment)
    if labels is not None:
        write_json(run.pseudo_file, labels)
