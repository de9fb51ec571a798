"""The one error type that a user is meant to read."""

from __future__ import annotations


class DfmsdError(ValueError):
    """Something the user can mend: says what is wrong, where, and what to do, in one line.

    The command line prints it as ``dfmsd: error: <message>`` and exits with status 2.
    """
