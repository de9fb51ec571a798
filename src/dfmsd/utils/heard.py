"""Logged messages: the package's warnings, collected, and texts that are logged again, dropped."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("dfmsd")


@contextmanager
def heard_warnings(*, printed: bool) -> Iterator[list[str]]:
    """Collect the package's warnings in a list.

    Args:
        printed: Whether they are logged as well.
    """
    found: list[str] = []

    class Collector(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            if record.levelno >= logging.WARNING:
                found.append(record.getMessage())
            return printed or record.levelno < logging.WARNING

    collector = Collector()
    logger.addFilter(collector)
    try:
        yield found
    finally:
        logger.removeFilter(collector)


class Unrepeated(logging.Filter):
    """Passes each text once, such as that of a data set that several parts of a command open."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the text is new."""
        text = record.getMessage()
        new = text not in self.seen
        self.seen.add(text)
        return new
