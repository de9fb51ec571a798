"""Restoring a run from its checkpoint: one of another version is refused before a file of the run changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch

from dfmsd.errors import DfmsdError, foreign_message
from dfmsd.runfolder import RunFolder

PARTS = ("state_dict", "callbacks", "optimizer_states", "lr_schedulers", "loops")
"""What a checkpoint holds besides Lightning's own numbers. Lightning passes over some of it if it is missing."""
MISFITS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What torch, Lightning and callbacks raise at a checkpoint of another shape."""


class StatefulCallback(pl.Callback):
    """A callback some of whose attributes are kept in checkpoints."""

    saved: ClassVar[tuple[str, ...]]
    """Their names."""
    optional: ClassVar[bool] = False
    """Whether a resumed run may have it anew, without a saved state."""

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Check a checkpoint before anything is loaded from it.

        Raises:
            ValueError: it holds another state than this version's.
        """
        found = checkpoint["callbacks"].get(self.state_key, {})
        if set(found) != set(self.saved) and (found or not self.optional):
            raise ValueError(f"{self.state_key} saved {', '.join(found) or 'nothing'}, not {', '.join(self.saved)}")

    def state_dict(self) -> dict[str, Any]:
        """Return the attributes, for a checkpoint."""
        return {name: getattr(self, name) for name in self.saved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the attributes from a checkpoint."""
        for name in self.saved:
            setattr(self, name, state_dict[name])


class Restoring(pl.Callback):
    """Notice when a checkpoint is restored whole, and call ``restored`` then. It must be the first callback.

    Args:
        checkpoint: where the run continues; None for a new run, for which this does nothing.
        restored: called once, before the training and before other callbacks change files, if given.
    """

    def __init__(self, checkpoint: Path | None, restored: Callable[[], None] | None = None) -> None:
        self.checkpoint = checkpoint
        self.restored = restored
        self.complete = checkpoint is None

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Look for what Lightning would pass over.

        Raises:
            ValueError: a part is missing.
        """
        saved = checkpoint["loops"]["fit_loop"]
        lacking = sorted(trainer.fit_loop.state_dict().keys() - saved.keys())
        if lacking:
            raise ValueError(f"its training loop has no {', '.join(lacking)}")
        if "combined_loader" not in saved["state_dict"]:
            raise ValueError("it has no position in the data")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Everything is restored."""
        self.finish()

    def finish(self) -> None:
        """Call ``restored`` unless that is done; Lightning starts no training where no epoch is left."""
        if not self.complete:
            self.complete = True
            if self.restored is not None:
                self.restored()

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn the errors of a checkpoint that does not fit into one line; errors of the training pass through.

        Raises:
            DfmsdError: the checkpoint has another layout than this version's.
        """
        try:
            if self.checkpoint is not None:
                _check_parts(self.checkpoint)
            yield
        except DfmsdError:
            raise
        except MISFITS as error:
            if self.complete or isinstance(error, torch.OutOfMemoryError):
                raise
            assert self.checkpoint is not None
            reason = foreign_message(error)
            if isinstance(error, KeyError):
                reason = f"KeyError: {reason}"
            raise DfmsdError(
                f"{self.checkpoint} was not written by this version of dfmsd ({reason}); resume the run with the "
                f"version {_written_by(self.checkpoint)}, or start again with `overwrite`"
            ) from error


def _check_parts(checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True, mmap=True, map_location="cpu")
    lacking = [part for part in PARTS if part not in content]
    if lacking:
        raise ValueError(f"it has no {', '.join(lacking)}")


def _written_by(checkpoint: Path) -> str:
    """Return which version wrote the run, as its folder says."""
    file = RunFolder(checkpoint.parent).environment_file
    try:
        return f"in {file.name}, {json.loads(file.read_text(encoding='utf-8'))['packages']['dfmsd']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "that wrote it"
