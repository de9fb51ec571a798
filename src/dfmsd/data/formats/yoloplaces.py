"""Where the images of YOLO data sets are: paths in their YAML and text files, perhaps of another machine."""

from __future__ import annotations

import logging
import os.path
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dfmsd.data.formats.text import read_text
from dfmsd.errors import DfmsdError

logger = logging.getLogger("dfmsd")


def search_folders(root: Path, path: object) -> list[Path]:
    """Return the folders that paths may be relative to, the likeliest first.

    Args:
        root: Folder of the YAML file.
        path: Value of ``path`` there.
    """
    given = [root / path] if isinstance(path, str) and path else []
    return [*given, root]


class Place(NamedTuple):
    """A folder or file that was found."""

    path: Path
    whole: bool
    """Whether by its whole path, not by the last parts of it."""


def locate(place: str, bases: list[Path]) -> Place | None:
    """Find a folder or file, also if it was written on another machine: by its last parts.

    ``../x`` is looked for in a folder itself before it is looked for beside it: Roboflow writes it so, and beside it
    may be another data set.

    Args:
        place: Path as it is written.
        bases: Folders that it may be relative to.

    Returns:
        None if it is not there.
    """
    parts = PurePosixPath(place.replace("\\", "/")).parts
    inner = [base / "-" for base in bases] if parts[:1] == ("..",) and parts[1:2] != ("..",) else []
    for start in range(max(1, len(parts))):
        for base in [*inner, *bases] if start == 0 else bases:
            path = os.path.normpath(base.joinpath(*parts[start:]))
            if _exists(path):
                return Place(Path(path), start == 0)
    return None


def _exists(path: str | Path) -> bool:
    try:
        return os.path.exists(path)
    except ValueError:  # a null character
        return False


def read_list(file: Path, bases: list[Path]) -> list[Path]:
    """Return the images in a text file, one path a line.

    Args:
        file: Text file.
        bases: Folders that paths may be relative to, besides its own.

    Raises:
        DfmsdError: A line names no image.
    """
    places = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if line.strip():
            place = locate(line.strip(), [file.parent, *bases])
            if place is None or not place.path.is_file():
                raise DfmsdError(f"{file}: line {number}: no image {line.strip()}; add it or remove the line")
            places.append(place)
    moved = [place.path for place in places if not place.whole]
    if moved:
        logger.warning(
            "%s: %d of %d images are found by the last parts of their path, such as %s",
            *(file, len(moved), len(places), moved[0]),
        )
    return [place.path for place in places]
