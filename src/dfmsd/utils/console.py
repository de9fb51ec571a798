"""Terminal output: the consoles of the command line, and silencing of noisy libraries."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, cast

from rich.console import Console


class StandardError:
    """Standard error, whatever it is at the moment, which is discarded once its reader is gone.

    A closed terminal or an ended ``| tee`` would end a run otherwise.
    """

    def write(self, text: str) -> int:
        """Write a text; return its length."""
        try:
            return self._stream.write(text)
        except OSError:
            discard(self._stream)
            return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        try:
            self._stream.flush()
        except OSError:
            discard(self._stream)

    @property
    def _stream(self) -> IO[str]:
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # a dashboard puts itself in between

    def __getattr__(self, name: str) -> Any:
        if name == "rich_proxied_file":
            raise AttributeError(name)
        return getattr(self._stream, name)


def discard(stream: IO[str]) -> None:
    """Send what is still written to a standard stream nowhere."""
    with suppress(OSError, ValueError):  # not a file, or closed
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


console = Console(file=cast("IO[str]", StandardError()), markup=False, emoji=False)  # names may contain brackets
"""Shared by all of dfmsd, so that what is printed while the dashboard runs appears above it."""


def results_console() -> Console:
    """Return a console for the results of a command, on standard output, in which brackets and colons stay."""
    return Console(markup=False, emoji=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings, logged ones included; errors pass through."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def quieted(logger: logging.Logger, level: int = logging.ERROR) -> Iterator[None]:
    """Suppress what another library logs below a level.

    Args:
        logger: the library's.
        level: lowest level that still appears.
    """
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
