"""The one error type that a user is meant to read, and how a process ends without one."""

from __future__ import annotations

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


class DfmsdError(ValueError):
    """Something the user can mend: says what is wrong, where, and what to do, in one line.

    The command line prints it as ``dfmsd: error: <message>`` and exits with status 2.
    """
