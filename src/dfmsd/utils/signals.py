"""Signals that ask a process to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dfmsd.errors import PREEMPTED, Stopped

PREEMPTIONS = ("SIGTERM", "SIGUSR1", "SIGHUP")
"""Sent by schedulers before they take a machine away, and by a terminal that is closed."""


def preemptions() -> list[signal.Signals]:
    """Return the signals after which work is saved and can be continued: those of this system that are not ignored.

    ``nohup`` starts a process that ignores SIGHUP.
    """
    known = [getattr(signal.Signals, name) for name in PREEMPTIONS if hasattr(signal, name)]
    return [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def preemptible() -> Iterator[None]:
    """End the block on the signals `preemptions`, as on Ctrl-C, so that what it runs is saved.

    Has no effect outside the main thread, where Python does not allow signal handlers.

    Raises:
        Stopped: One of the signals arrived.
    """

    def stop(*_: object) -> None:
        raise Stopped(PREEMPTED)

    main = threading.current_thread() is threading.main_thread()
    former = {number: signal.signal(number, stop) for number in (preemptions() if main else ())}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler or signal.SIG_DFL)
