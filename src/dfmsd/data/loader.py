"""Data loader that can resume in the middle of an epoch."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Sampler

from dfmsd.data.dataset import DetectionDataset
from dfmsd.data.samplers import EpochBatches
from dfmsd.data.transforms import Sample
from dfmsd.types import Batch
from dfmsd.utils.signals import preemptions


class ResumableLoader(DataLoader[Sample]):
    """Load the batches of one epoch after the other; once restored, continue after the last batch before saving.

    The content of an epoch follows from its number (see `EpochSampler`), so only the position needs to be saved.
    Nothing is loaded before the first batch is requested: by then the trainer has set the sampler's epoch.

    Args:
        dataset: Takes the sampler's keys.
        sampler: Samples the keys of one epoch.
        batch_size: Keys per batch.
        drop_last: Drop a last, smaller batch.
        options: Options of ``DataLoader``.
    """

    def __init__(
        self, dataset: DetectionDataset, sampler: Sampler[Any], batch_size: int, *, drop_last: bool, **options: Any
    ) -> None:
        self.given = 0
        self._restored = 0
        self._batches = EpochBatches(sampler, batch_size, drop_last)
        super().__init__(dataset, batch_sampler=self._batches, **options)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch declares its own iterator class
        """Iterate over the epoch, or over the rest of a restored one."""
        self.given, self._restored = self._restored, 0
        self._batches.start = self.given
        for batch in super().__iter__():
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the number of batches of this epoch loaded so far."""
        return {"given": self.given}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Make the next iteration continue at the saved position."""
        self._restored = state_dict["given"]


def ignore_stop_signals(_: int) -> None:
    """Keep a loader worker alive when all processes of a run are asked to stop: the run needs it to end its step.

    The worker ends when its parent asks it to or has ended.
    """
    for number in (signal.SIGINT, *preemptions()):
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_with, args=(os.getppid(),), daemon=True).start()


def _exit_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass  # sent to the whole run, which handles it
    os._exit(0)
