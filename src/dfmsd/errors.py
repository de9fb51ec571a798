"""DfmsdError, the one error type meant for users, and exit statuses of interrupted runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

INTERRUPTED = 130
"""Exit status after Ctrl-C, as in shells."""
PREEMPTED = 75
"""Exit status after SIGTERM, SIGUSR1 or SIGHUP: the run is saved and can be resumed (EX_TEMPFAIL in sysexits.h)."""


def one_line(error: object) -> str:
    """Fold a message into one line."""
    return " ".join(str(error).split())


def foreign_message(error: Exception, limit: int = 300) -> str:
    """Shorten another library's message for use inside ours: one line without a final full stop.

    Args:
        error: the other library's error.
        limit: maximum length in characters.
    """
    line = one_line(error).rstrip(".") or type(error).__name__
    return line if len(line) <= limit else f"{line[:limit]} ..."


def listed(names: Sequence[str], shown: int) -> str:
    """Join the first names for a message and count the others: ``a, b and 2 more``."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def suggest(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return ``did you mean X?`` for the most similar known name, in any case; ``otherwise`` if none is similar."""
    spelled = {each.casefold(): each for each in known}
    near = get_close_matches(name.casefold(), list(spelled), n=1)
    return f"did you mean {spelled[near[0]]}?" if near else otherwise


class Stopped(KeyboardInterrupt):
    """A signal ended a training after it was saved; ``resume`` continues it.

    Args:
        status: exit status for the signal. It is 0 in every process of a run but the first: a launcher that sees
            another process fail would kill the first one while it is still writing.
    """

    def __init__(self, status: int = INTERRUPTED) -> None:
        super().__init__(status)
        self.status = status


class DfmsdError(ValueError):
    """An error that the user can fix. The message is one line: what is wrong, where, and what to do.

    The command line prints it as ``dfmsd: error: <message>`` and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        # a loader process passes its errors on as the text of a traceback, which ends with the message
        super().__init__(message.rpartition(f"{__name__}.DfmsdError: ")[2])
