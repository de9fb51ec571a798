"""The same function on many items, in threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

THREADS = 16
"""Threads that read files: network disks have a high latency."""


def map_in_threads(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Apply a function that waits for files to every item; the results are in the order of the items."""
    step = max(1, -(-len(items) // THREADS))
    with ThreadPoolExecutor(THREADS) as pool:
        parts = (items[start : start + step] for start in range(0, len(items), step))
        return list(chain.from_iterable(pool.map(lambda part: [function(item) for item in part], parts)))
