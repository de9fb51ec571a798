"""Signals that ask a run to stop."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytorch_lightning as pl

from dfmsd.errors import INTERRUPTED, PREEMPTED
from dfmsd.utils.signals import preemptions


class Interrupted(Exception):  # noqa: N818 - not an error, and no KeyboardInterrupt, which Lightning handles itself
    """Leave the training loop after a signal; the run is saved.

    Args:
        status: exit status that tells which signal it was.
    """

    def __init__(self, status: int = INTERRUPTED) -> None:
        super().__init__(status)
        self.status = status


class StopOnInterrupt(pl.Callback):
    """Record signals that ask the run to stop, so that `LastCheckpoint` saves and ends it after the current step.

    Handled are Ctrl-C (a second one ends the run at once) and `preemptions`. The previous handlers are restored when
    training ends.

    Attributes:
        asked: exit status for the signal received; 0 before there is one.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._former: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the handlers, which Python allows in the main thread only."""
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGINT, *preemptions())
            self._former = {number: signal.signal(number, self._ask) for number in numbers}

    def _ask(self, number: int, _: Any) -> None:
        self.asked = INTERRUPTED if number == signal.SIGINT else PREEMPTED
        if number == signal.SIGINT:
            signal.signal(number, self._former.pop(number) or signal.SIG_DFL)
        elif number == getattr(signal, "SIGHUP", None):  # comes twice, from the kernel and from the shell
            signal.signal(number, signal.SIG_IGN)
            self._former.pop(number)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the previous handlers."""
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restore the previous handlers."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler or signal.SIG_DFL)
        self._former = {}
