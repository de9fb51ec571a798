"""Terminal output: the console of the command line, and silencing of noisy libraries."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

console = Console(stderr=True, markup=False, emoji=False)  # names may contain brackets
"""Shared by all of dfmsd, so that what is printed while the dashboard runs appears above it."""


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
