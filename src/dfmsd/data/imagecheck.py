"""Checks of the image files that an annotation file lists."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath

from dfmsd.data.images import read_size
from dfmsd.data.records import ImageRecord
from dfmsd.errors import DfmsdError

THREADS = 16
"""Threads that read headers: network disks have a high latency."""


def check_files(names: Sequence[str], folder: Path, root: Path, file: Path) -> None:
    """Check that all images exist and that no symbolic link leads out of the data set.

    Args:
        names: File names relative to ``folder``.
        folder: Folder of the images.
        root: Folder of the data set; it may itself be a link.
        file: Annotation file, for messages.

    Raises:
        DfmsdError: Files are missing or lie outside ``root``.
    """
    missing, outside = _find_missing(names, folder, root.resolve())
    if missing:
        raise DfmsdError(
            f"{folder}: {len(missing)} of the {len(names)} images in {file} are missing, the first is {missing[0]}; "
            "add the files or remove their entries"
        )
    if outside:
        raise DfmsdError(
            f"{folder}: {len(outside)} of the {len(names)} images in {file} are links that lead out of {root}, the "
            f"first is {outside[0]}; put the files themselves there, or choose a data.root that contains both"
        )


def _find_missing(names: Iterable[str], folder: Path, root: Path) -> tuple[list[str], list[str]]:
    """Return missing names and names outside ``root``; scans each folder once instead of calling `stat` per image."""
    by_parent: dict[PurePath, list[PurePath]] = defaultdict(list)
    for path in map(PurePath, names):
        by_parent[path.parent].append(path)
    missing: list[str] = []
    outside: list[str] = []
    for parent, paths in by_parent.items():
        try:
            with os.scandir(folder / parent) as entries:
                is_link = {entry.name: entry.is_symlink() for entry in entries if entry.is_file()}
        except OSError:  # the folder does not exist or cannot be read
            is_link = {}
        missing += [str(path) for path in paths if path.name not in is_link]
        folder_outside = is_link and not (folder / parent).resolve().is_relative_to(root)
        suspects = (path for path in paths if folder_outside or is_link.get(path.name))
        outside += [str(path) for path in suspects if not (folder / path).resolve().is_relative_to(root)]
    return missing, outside


def check_sizes(records: Sequence[ImageRecord], file: Path) -> None:
    """Compare the header of every image with the annotation file; pixels are not decoded.

    Raises:
        DfmsdError: A file is not an image or has another size.
    """

    def check(part: Sequence[ImageRecord]) -> None:
        for record in part:
            check_size(record, read_size(record.path), file)

    step = -(-len(records) // THREADS)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(check, (records[start : start + step] for start in range(0, len(records), step))))


def check_size(record: ImageRecord, size: tuple[int, int], file: Path) -> None:
    """Compare an image's height and width with the annotation file.

    Raises:
        DfmsdError: They differ.
    """
    if size != (record.height, record.width):
        raise DfmsdError(
            f"{record.path} is {size[1]} x {size[0]} pixels (EXIF orientation applied), but {file} says "
            f"{record.width} x {record.height}; correct width, height and boxes of image id {record.id} there"
        )
