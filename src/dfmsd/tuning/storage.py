"""Storages of a study: SQLite, another database, or a journal file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import SQLAlchemyError

from dfmsd.errors import DfmsdError, foreign_message
from dfmsd.utils.console import quiet
from dfmsd.utils.files import check_output, make_folder

JOURNAL = "journal:///"
SQLITE = "sqlite:///"
SQLITE_SECONDS = 120
"""That a process waits while others write to an SQLite file."""


def open_storage(url: str) -> BaseStorage:
    """Open a storage, and create it where it does not exist.

    Args:
        url: of a database as SQLAlchemy writes it, such as ``sqlite:///study.db``, or ``journal:///study.log``.

    Raises:
        DfmsdError: it cannot be reached.
    """
    for prefix in (JOURNAL, SQLITE):
        if url.startswith(prefix) and url != prefix:
            file = Path(url.removeprefix(prefix).partition("?")[0])
            check_output(file, "storage")
            make_folder(file.parent, "storage")
    try:
        with quiet():
            if url.startswith(JOURNAL):
                return JournalStorage(JournalFileBackend(url.removeprefix(JOURNAL)))
            options: dict[str, Any] = {"connect_args": {"timeout": SQLITE_SECONDS}} if url.startswith(SQLITE) else {}
            return RDBStorage(url, engine_kwargs=options)
    except Exception as error:  # each database's driver has errors of its own
        raise DfmsdError(
            f"storage: cannot open {without_password(url)} ({_reason(error)}); pass a URL such as "
            f"{SQLITE}study.db, {JOURNAL}study.log or postgresql://user@host/name"
        ) from error


def without_password(url: str) -> str:
    """Return a URL without the password in it, for messages."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


@contextmanager
def explain_lost(url: str) -> Iterator[None]:
    """Turn the errors of a storage that no longer answers into one line.

    Raises:
        DfmsdError: the storage has failed.
    """
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        raise DfmsdError(
            f"storage: {without_password(url)} has failed ({_reason(error)}); repeat the command to continue"
        ) from error


def _reason(error: Exception) -> str:
    """Return the message of a driver without SQLAlchemy's link, and without a password."""
    return without_password(foreign_message(error.__cause__ if isinstance(error.__cause__, Exception) else error))
