"""The one error type that a user is meant to read, and how a process ends without one."""

from __future__ import annotations

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""
PREEMPTED = 75
"""Exit status of a run that SIGTERM or SIGUSR1 stopped: it is saved and can go on (EX_TEMPFAIL of sysexits.h)."""


def one_line(error: object) -> str:
    """Fold a message into one line."""
    return " ".join(str(error).split())


def foreign_message(error: Exception, limit: int = 300) -> str:
    """Give another library's message as a part of one of ours: a line without full stop, of ``limit`` characters."""
    line = one_line(error).rstrip(".") or type(error).__name__
    return line if len(line) <= limit else f"{line[:limit]} ..."


class Stopped(KeyboardInterrupt):
    """A signal ended a training that others wait for, such as a teacher's; it is saved, and a new start goes on.

    Args:
        status: exit status that says which signal it was; 0 in all processes of a run but the first, which is still
            writing and would be ended by another one's.
    """

    def __init__(self, status: int = INTERRUPTED) -> None:
        super().__init__(status)
        self.status = status


class DfmsdError(ValueError):
    """Something the user can mend: says what is wrong, where, and what to do, in one line.

    The command line prints it as ``dfmsd: error: <message>`` and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        # a process that loads images hands its errors over as the text of a traceback, which ends with the message
        super().__init__(message.rpartition(f"{__name__}.DfmsdError: ")[2])
