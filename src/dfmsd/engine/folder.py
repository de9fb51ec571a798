"""Checks on the folder of a new or resumed run, and its creation."""

from __future__ import annotations

import shutil
from pathlib import Path

from dfmsd.distillation.checks import ownership
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine.checkpoint import saved_step, tidy
from dfmsd.engine.config import RunConfig
from dfmsd.engine.environment import describe_environment
from dfmsd.engine.saved_config import differing_keys, write_config
from dfmsd.errors import DfmsdError
from dfmsd.runfolder import RunFolder
from dfmsd.utils.console import console
from dfmsd.utils.files import check_writable, write_json

SHOWN_KEYS = 4
"""Keys in which a resumed config differs that its refusal names."""


def check_folder(run: RunFolder, config: RunConfig, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that the run must not or cannot use; nothing is left there.

    Raises:
        DfmsdError: the folder holds a run, or none, or another one, against what ``resume`` and ``overwrite`` say, or
            cannot be written.
    """
    if resume and overwrite:
        raise DfmsdError("--resume keeps what is in the run folder and --overwrite deletes it; pass one of them")
    if run.path.exists() and not run.path.is_dir():
        raise DfmsdError(f"out: {run} is a file; name a folder")
    if resume and not run.exists:
        raise DfmsdError(f"{run} holds no run, so there is nothing to resume; leave out --resume")
    if resume and (keys := differing_keys(config, run.path)):
        raise DfmsdError(
            f"{run.config_file} differs from this config in {', '.join(keys[:SHOWN_KEYS])}"
            f"{', ...' if len(keys) > SHOWN_KEYS else ''}; resume with --config {run.config_file}"
        )
    if not resume and not overwrite and run.exists:
        raise DfmsdError(f"{run} already holds a run; pass --resume, --overwrite or another --out")
    check_writable(run.path)


def open_folder(
    run: RunFolder, config: RunConfig, task: DistillationTask, checkpoint: Path | None, *, overwrite: bool
) -> None:
    """Create the run folder with its config and environment, as late as possible: refused input deletes no older run.

    Args:
        run: the folder.
        config: saved there.
        task: its parameters are counted.
        checkpoint: where a resumed run continues.
        overwrite: delete an existing run first.

    Raises:
        DfmsdError: the folder cannot be written.
    """
    if overwrite and run.exists:
        shutil.rmtree(run.path)
    tidy(run.path, checkpoint)
    if checkpoint is not None and checkpoint == run.previous_checkpoint:
        step = saved_step(checkpoint)
        console.print(f"the last checkpoint is damaged; resuming from the one before it, step {step}", highlight=False)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        write_config(config, run.path)
    except OSError as error:
        raise DfmsdError(f"out: cannot write to {run} ({error.strerror}); choose another folder") from error
    write_json(run.environment_file, {**describe_environment(), "parameters": ownership(task)})
