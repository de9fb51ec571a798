"""The package's warnings, collected."""

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
