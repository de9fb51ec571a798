"""Signals that ask a process to stop."""

from __future__ import annotations

import signal

PREEMPTIONS = ("SIGTERM", "SIGUSR1", "SIGHUP")
"""Sent by schedulers before they take a machine away, and by a terminal that is closed."""


def preemptions() -> list[signal.Signals]:
    """Return the signals after which work is saved and can be continued: those of this system that are not ignored.

    ``nohup`` starts a process that ignores SIGHUP.
    """
    known = [getattr(signal.Signals, name) for name in PREEMPTIONS if hasattr(signal, name)]
    return [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]
