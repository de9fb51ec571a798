"""A loader that goes on in the middle of an epoch."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, Sampler

from dfmsd.data.dataset import DetectionDataset
from dfmsd.data.transforms import Sample
from dfmsd.types import Batch


class EpochBatches(BatchSampler):
    """Keys of an epoch's batches.

    Attributes:
        start: Batches at the beginning that are left out.
    """

    start = 0

    def __iter__(self) -> Iterator[list[Any]]:
        """Walk through the epoch; what is left out costs no more than its keys."""
        yield from islice(super().__iter__(), self.start, None)


class ResumableLoader(DataLoader[Sample]):
    """Batches of one epoch after the other; a restored one goes on behind the batch that it had given when saved.

    What an epoch shows follows from its number (see `EpochSampler`), so there is nothing else to save. Nothing is
    fetched before the first batch is asked for: by then the trainer has told the sampler the epoch.

    Args:
        dataset: Takes the sampler's keys.
        sampler: Of one epoch.
        batch_size: Keys in a batch.
        drop_last: Leave out a last, smaller batch.
        options: For ``DataLoader``.
    """

    def __init__(
        self, dataset: DetectionDataset, sampler: Sampler[Any], batch_size: int, *, drop_last: bool, **options: Any
    ) -> None:
        self.given = 0
        self._restored = 0
        self._batches = EpochBatches(sampler, batch_size, drop_last)
        super().__init__(dataset, batch_sampler=self._batches, **options)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch promises its own class
        """Walk through the epoch, or through the rest of the one that was saved."""
        self.given, self._restored = self._restored, 0
        self._batches.start = self.given
        for batch in super().__iter__():
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Save how many batches of the epoch were given."""
        return {"given": self.given}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next walk begin where the saved one was."""
        self._restored = state_dict["given"]


def leave_signals_to_the_run(_: int) -> None:
    """Let a loader's process live on when all processes of a run are asked to stop: the run needs it to end its step.

    It ends when its parent asks for that, or is no more.
    """
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass  # somebody else's is for the run
    os._exit(0)
