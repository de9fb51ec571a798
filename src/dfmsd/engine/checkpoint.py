"""Checkpoints that a kill, a power cut or a full disk leaves whole, and when they are written."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from safetensors import SafetensorError

from dfmsd.engine.callbacks import Interrupted, StopOnInterrupt
from dfmsd.errors import PREEMPTED, DfmsdError
from dfmsd.utils.files import write_atomically

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
MINUTES = 10.0
"""Between two checkpoints where the user gave no number of steps; an epoch's end has one all the same."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DurableIO(TorchCheckpointIO):
    """Write a checkpoint beside the old one, which it then replaces; that of ``last.ckpt`` stays as ``previous.ckpt``.

    At any moment ``last.ckpt`` is a whole file, on the disk and not only on its way there.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: what to save.
            path: of the file.
            storage_options: not used.
        """
        path = Path(path)
        content = io.BytesIO()  # torch's own writer reports a full disk without saying so
        torch.save(checkpoint, content)

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            if path.name == LAST and path.exists():
                write_atomically(path.with_name(PREVIOUS), lambda second: _second_name(path, second))

        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)
        _sync_folder(path.parent)


def find_checkpoint(run: Path) -> Path | None:
    """Give the newest whole checkpoint of a run, if it has come to one.

    Raises:
        DfmsdError: there are checkpoints, but none is whole.
    """
    candidates = [run / LAST, run / PREVIOUS]
    found = next((path for path in candidates if is_whole(path)), None)
    if found is None and any(path.exists() for path in candidates):
        raise DfmsdError(
            f"{run / LAST} is damaged or none of dfmsd's, and there is no whole {PREVIOUS}; remove what is there, and "
            "--resume starts the run again"
        )
    return found


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is there, complete and as it was written: each part has a check sum. No code in it runs."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None and saved_step(path) >= 0
    except Exception:  # a damaged file breaks the readers in any way
        return False


def saved_step(path: Path) -> int:
    """Tell how many steps a checkpoint has behind it; its tensors are not read."""
    return int(torch.load(path, weights_only=True, mmap=True, map_location="cpu")["global_step"])


def tidy(run: Path, checkpoint: Path | None) -> None:
    """Remove what a killed process left: files that it had begun, and a last checkpoint that is passed over."""
    for begun in run.glob(".*.part"):
        begun.unlink(missing_ok=True)
    if checkpoint is not None and checkpoint.name == PREVIOUS:
        (run / LAST).unlink(missing_ok=True)


@contextmanager
def full_disk_told(run: Path) -> Iterator[None]:
    """Turn what a full disk raises, wherever that is, into one line.

    Raises:
        DfmsdError: there was no room for a file of the run.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if _code(error) not in FULL:
            raise
        saved = next((path for path in (run / LAST, run / PREVIOUS) if is_whole(path)), None)
        rest = f"--resume goes on from step {saved_step(saved)}" if saved else "start again with --overwrite"
        reason = os.strerror(_code(error))
        raise DfmsdError(f"{run}: no room left to write ({reason}); make some, then {rest}") from error


class LastCheckpoint(Checkpoint):
    """Write ``last.ckpt`` after every epoch and every so many steps, and where a signal asked the run to stop.

    There is none at the last step of an epoch, whose own one follows its evaluation; one that is due there is written a
    step early.

    Args:
        run: run folder.
        stop: knows whether the run is to stop.
        every: optimiser steps; None is `MINUTES`.
    """

    def __init__(self, run: Path, stop: StopOnInterrupt, every: int | None = None) -> None:
        self.path = run / LAST
        self.stop = stop
        self.every = every
        self._step = 0
        self._time = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from here."""
        self._step, self._time = trainer.global_step, time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save what is due; leave the loop if the user asked for it, all processes at the same step.

        Raises:
            Interrupted: the run is saved and to end.
        """
        if trainer.is_last_batch:  # Lightning would take the epoch for done, with its evaluation
            return
        before_last = batch_idx + 2 == trainer.num_training_batches
        agree = trainer.strategy.reduce_boolean_decision
        if agree(bool(self.stop.asked) or self._is_due(trainer.global_step + before_last), all=False):
            self._save(trainer)
            self._end(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the epoch; leave the loop if the user asked for it.

        Raises:
            Interrupted: the run is saved and to end.
        """
        self._save(trainer)
        self._end(trainer)

    def _is_due(self, step: int) -> bool:
        if self.every is None:
            return time.monotonic() - self._time >= 60 * MINUTES
        return step - self._step >= self.every

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path, weights_only=False)
        self._step, self._time = trainer.global_step, time.monotonic()

    def _end(self, trainer: pl.Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(bool(self.stop.asked), all=False):
            raise Interrupted(self.stop.asked or PREEMPTED)


def _code(error: Exception) -> int:
    """The number of a system's error; safetensors tells it in its text."""
    told = re.search(r"os error (\d+)", str(error))
    return int(told[1]) if told else getattr(error, "errno", None) or 0


def _second_name(path: Path, second: Path) -> None:
    second.unlink(missing_ok=True)
    try:
        os.link(path, second)
    except OSError:  # a file system without links
        shutil.copyfile(path, second)


def _sync_folder(folder: Path) -> None:
    """Let the new name survive a power cut too; only POSIX opens folders."""
    with suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
