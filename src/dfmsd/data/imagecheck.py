"""The image files that an annotation file names: there, inside the data set, and of the stated size."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from dfmsd.data.images import read_size
from dfmsd.errors import DfmsdError

if TYPE_CHECKING:
    from dfmsd.data.coco import ImageRecord

UNWRITABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters and halves of characters: no file, page or terminal takes them."""
READERS = 16
"""Headers that are read at a time: network disks take long for each."""


def check_names(images: Sequence[dict[str, Any]], folder: Path, file: Path) -> None:
    """Check what an annotation file says of its images, without looking at them.

    Args:
        images: Its entries, each with an ``id``.
        folder: Of the images.
        file: The annotation file, for messages.

    Raises:
        DfmsdError: A name or a size is missing or malformed, or a name leads out of the folder.
    """
    for image in images:
        name, where = image.get("file_name"), f"{file}: image id {image['id']}"
        if not isinstance(name, str) or not name:
            raise DfmsdError(f"{where} has no `file_name`; add it")
        if UNWRITABLE.search(name):
            raise DfmsdError(f"{where}: file_name {name!r} holds control characters; rename the file")
        if PurePath(name).anchor or ".." in PurePath(name).parts:
            raise DfmsdError(f"{where}: file_name {name!r} leaves {folder}; write it relative to that folder")
        if any(type(image.get(key)) is not int or image[key] < 1 for key in ("width", "height")):
            raise DfmsdError(f"{where} ({name}) has no positive integer `width` and `height`; add them")


def check_files(names: Sequence[str], folder: Path, root: Path, file: Path) -> None:
    """Check that the images are there, and that no link leads out of the data set.

    Args:
        names: Of the images, relative to ``folder``.
        folder: Of the images.
        root: Of the data set; a link itself, it may lead anywhere.
        file: The annotation file, for messages.

    Raises:
        DfmsdError: Files are missing, or lie elsewhere.
    """
    missing, outside = _search(names, folder, root.resolve())
    if missing:
        raise DfmsdError(
            f"{folder}: {len(missing)} of the {len(names)} images in {file} are missing, the first is {missing[0]}; "
            "add the files or remove their entries"
        )
    if outside:
        raise DfmsdError(
            f"{folder}: {len(outside)} of the {len(names)} images in {file} are links that lead out of {root}, the "
            f"first is {outside[0]}; put the files themselves there, or give a data.root that holds both"
        )


def _search(names: Iterable[str], folder: Path, root: Path) -> tuple[list[str], list[str]]:
    """List the names without a file and those elsewhere; one scan a folder instead of one `stat` an image."""
    by_parent: dict[PurePath, list[PurePath]] = defaultdict(list)
    for path in map(PurePath, names):
        by_parent[path.parent].append(path)
    missing: list[str] = []
    outside: list[str] = []
    for parent, paths in by_parent.items():
        try:
            with os.scandir(folder / parent) as entries:
                links = {entry.name: entry.is_symlink() for entry in entries if entry.is_file()}
        except OSError:  # there is no such folder, or it cannot be read
            links = {}
        missing += [str(path) for path in paths if path.name not in links]
        astray = links and not (folder / parent).resolve().is_relative_to(root)
        suspects = (path for path in paths if astray or links.get(path.name))
        outside += [str(path) for path in suspects if not (folder / path).resolve().is_relative_to(root)]
    return missing, outside


def check_sizes(records: Sequence[ImageRecord], file: Path) -> None:
    """Compare the header of every image with what the annotation file says; pixels are not decoded.

    Raises:
        DfmsdError: A file is no image, or has another size.
    """

    def check(part: Sequence[ImageRecord]) -> None:
        for record in part:
            check_size(record, read_size(record.path), file)

    step = -(-len(records) // READERS)
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(check, (records[start : start + step] for start in range(0, len(records), step))))


def check_size(record: ImageRecord, size: tuple[int, int], file: Path) -> None:
    """Compare the size of an image, height and width, with what the annotation file says.

    Raises:
        DfmsdError: They differ.
    """
    if size != (record.height, record.width):
        raise DfmsdError(
            f"{record.path} is {size[1]} x {size[0]} pixels (EXIF orientation applied), but {file} says "
            f"{record.width} x {record.height}; correct width, height and boxes of image id {record.id} there"
        )
