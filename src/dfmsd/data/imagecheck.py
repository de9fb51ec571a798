"""Sizes of image files, compared with what annotations say."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dfmsd.data.images import read_size
from dfmsd.data.records import ImageRecord
from dfmsd.errors import DfmsdError

THREADS = 16
"""Threads that read headers: network disks have a high latency."""


def read_sizes(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """Read height and width of every image from its header; pixels are not decoded.

    Raises:
        DfmsdError: A file is not an image.
    """

    def read(part: Sequence[Path]) -> list[tuple[int, int]]:
        return [read_size(path) for path in part]

    step = -(-len(paths) // THREADS) or 1
    with ThreadPoolExecutor(THREADS) as pool:
        parts = pool.map(read, (paths[start : start + step] for start in range(0, len(paths), step)))
        return [size for part in parts for size in part]


def check_size(record: ImageRecord, size: tuple[int, int], file: Path) -> None:
    """Compare an image's height and width with those of its record.

    Raises:
        DfmsdError: They differ.
    """
    if size != (record.height, record.width):
        raise DfmsdError(
            f"{record.path} is {size[1]} x {size[0]} pixels (EXIF orientation applied), but was "
            f"{record.width} x {record.height} when {file} was read; correct width, height and boxes there"
        )
