"""Checkpoints that survive a kill, a power cut or a full disk, and when they are written."""

from __future__ import annotations

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
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from safetensors import SafetensorError

from dfmsd.engine.interrupt import Interrupted, StopOnInterrupt
from dfmsd.engine.module import DistillationModule
from dfmsd.errors import PREEMPTED, DfmsdError
from dfmsd.runfolder import RunFolder
from dfmsd.utils.files import DISK_FULL, write_atomically

MINUTES = 10.0
"""Between two checkpoints where no number of steps is given; the end of an epoch always has one."""


class DurableIO(TorchCheckpointIO):
    """Write each checkpoint atomically; the last one is first kept as the previous one.

    At any moment ``last.ckpt`` is a complete file that has reached the disk.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: content.
            path: file.
            storage_options: unused.
        """
        path = Path(path)
        run = RunFolder(path.parent)
        content = io.BytesIO()  # torch's own file writer hides the error code of a full disk
        torch.save(checkpoint, content)

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            if path == run.last_checkpoint and path.exists():
                write_atomically(run.previous_checkpoint, lambda link: _link_or_copy(path, link))

        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)
        _sync_folder(path.parent)


def find_checkpoint(run: Path) -> Path | None:
    """Return the newest intact checkpoint of a run; None if it has not written any.

    Raises:
        DfmsdError: there are checkpoints, but all are damaged.
    """
    folder = RunFolder(run)
    intact = _newest_intact(folder)
    if intact is None and (folder.last_checkpoint.exists() or folder.previous_checkpoint.exists()):
        raise DfmsdError(
            f"{folder.last_checkpoint} is damaged or not written by dfmsd, and there is no intact "
            f"{folder.previous_checkpoint.name}; remove them, and `resume` starts the run again"
        )
    return intact


def is_intact(path: Path) -> bool:
    """Return whether a checkpoint exists and all its checksums match. No code in it is executed."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None and saved_step(path) >= 0
    except Exception:  # a damaged file can make the readers fail in any way
        return False


def saved_step(path: Path) -> int:
    """Return the number of steps that a checkpoint was written after, without reading its tensors."""
    return int(torch.load(path, weights_only=True, mmap=True, map_location="cpu")["global_step"])


def tidy(run: Path, checkpoint: Path | None) -> None:
    """Remove what a killed process left behind: partly written files, and a damaged last checkpoint."""
    folder = RunFolder(run)
    for partial in run.glob(".*.part"):
        partial.unlink(missing_ok=True)
    if checkpoint == folder.previous_checkpoint:
        folder.last_checkpoint.unlink(missing_ok=True)


@contextmanager
def explain_full_disk(run: Path) -> Iterator[None]:
    """Turn the errors of a full disk into one line.

    Raises:
        DfmsdError: there was no room for a file of the run.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if _error_code(error) not in DISK_FULL:
            raise
        saved = _newest_intact(RunFolder(run))
        remedy = f"`resume` continues from step {saved_step(saved)}" if saved else "start again with `overwrite`"
        reason = os.strerror(_error_code(error))
        raise DfmsdError(f"{run}: no space left to write ({reason}); free some, then {remedy}") from error


class BestCheckpoint(ModelCheckpoint):
    """Write ``best.ckpt`` after each evaluation that is better than all before, also in a run that was moved.

    Lightning's own forgets the best score where the folder has another path than before.

    Args:
        run: run folder.
    """

    def __init__(self, run: Path) -> None:
        name = RunFolder(run).best_checkpoint.stem
        super().__init__(
            run, name, monitor="AP", mode="max", save_on_train_epoch_end=True, enable_version_counter=False
        )

    @property
    def state_key(self) -> str:
        """Key in checkpoints, that of Lightning's own."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state, with the files in today's folder."""

        def here(path: str) -> str:
            return str(Path(self.dirpath or "", Path(path).name)) if path else ""

        moved = {name: here(state_dict[name]) for name in ("best_model_path", "kth_best_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": best, "dirpath": self.dirpath})


class LastCheckpoint(Checkpoint):
    """Write ``last.ckpt`` after every epoch, every few steps, and when a signal asks the run to stop.

    None is written at the last step of an epoch, where the epoch's own follows after evaluation; one that is due there
    is written a step early.

    Args:
        run: run folder.
        stop: receives the signals.
        every: optimizer steps between checkpoints; None is every `MINUTES`.
    """

    def __init__(self, run: Path, stop: StopOnInterrupt, every: int | None = None) -> None:
        self.path = RunFolder(run).last_checkpoint
        self.stop = stop
        self.every = every
        self._step = 0
        self._time = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting steps and minutes."""
        self._step, self._time = trainer.global_step, time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if due; leave the loop if asked to, in all processes at the same step.

        Raises:
            Interrupted: a signal came; the run is saved.
        """
        assert isinstance(pl_module, DistillationModule)
        if trainer.is_last_batch:  # Lightning would consider the epoch finished, evaluation included
            return
        if not pl_module.ends_step:  # gradients are not saved
            return
        before_last = batch_idx + 1 + pl_module.per_step >= trainer.num_training_batches
        agree = trainer.strategy.reduce_boolean_decision
        if agree(bool(self.stop.asked) or self._is_due(trainer.global_step + before_last), all=False):
            self._save(trainer)
            self._stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the epoch; leave the loop if asked to.

        Raises:
            Interrupted: a signal came; the run is saved.
        """
        self._save(trainer)
        self._stop_if_asked(trainer)

    def _is_due(self, step: int) -> bool:
        if self.every is None:
            return time.monotonic() - self._time >= 60 * MINUTES
        return step - self._step >= self.every

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path, weights_only=False)
        self._step, self._time = trainer.global_step, time.monotonic()

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(bool(self.stop.asked), all=False):
            raise Interrupted(self.stop.asked or PREEMPTED)


def _newest_intact(run: RunFolder) -> Path | None:
    return next((path for path in (run.last_checkpoint, run.previous_checkpoint) if is_intact(path)), None)


def _error_code(error: Exception) -> int:
    """Return a system error's number; safetensors has it in its text only."""
    match = re.search(r"os error (\d+)", str(error))
    return int(match[1]) if match else getattr(error, "errno", None) or 0


def _link_or_copy(path: Path, link: Path) -> None:
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, link)


def _sync_folder(folder: Path) -> None:
    """Flush a folder so that a new name survives a power cut; only POSIX can open folders."""
    with suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
