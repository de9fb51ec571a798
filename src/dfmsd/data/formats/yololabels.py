"""Label files of YOLO data sets, by the images that they belong to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from dfmsd.data.images import image_suffixes
from dfmsd.utils.files import is_hidden

logger = logging.getLogger("dfmsd")


def label_file(image: Path, names_in: Callable[[Path], Collection[str]]) -> Path | None:
    """Return the label file of an image: in ``labels`` where the image is in ``images``, or beside it.

    Args:
        image: Image file.
        names_in: Lists the names of the files in a folder.
    """
    return next((place for place in label_places(image) if place.name in names_in(place.parent)), None)


def label_places(image: Path) -> list[Path]:
    """Return the label files that an image may have, the likeliest first."""
    place = next((number for number, part in enumerate(image.parts[::-1]) if part == "images"), None)
    beside = image.with_suffix(".txt")
    if place is None:
        return [beside]
    parts = list(beside.parts)
    parts[-1 - place] = "labels"
    return [Path(*parts), beside]


def warn_of_orphans(images: Sequence[Path], names_in: Callable[[Path], Collection[str]], where: str) -> None:
    """Warn of label files in folders ``labels`` whose images are not there, or in a format that is not read.

    Args:
        images: Image files of a split.
        names_in: Lists the names of the files in a folder.
        where: What has these images, for the message.
    """
    folders = {image.parent: label_places(image)[0].parent for image in images}
    suffixes = image_suffixes()
    labels, orphans = 0, list[Path]()
    for folder, label_folder in folders.items():
        stems = {Path(name).stem for name in names_in(folder) if Path(name).suffix.lower() in suffixes}
        files = [Path(name) for name in names_in(label_folder) if name.endswith(".txt") and name != "classes.txt"]
        files = [file for file in files if not is_hidden(file.name)]
        if label_folder != folder:  # where other text files may be, too
            labels += len(files)
            orphans += [label_folder / file for file in files if file.stem not in stems]
    if orphans:
        logger.warning(
            "%s: %d of %d label files have no image, the first is %s: add the images or remove the files",
            *(where, len(orphans), labels, min(orphans)),
        )


def file_names(folder: Path) -> frozenset[str]:
    """Return the names of the files in a folder; there are none if it cannot be read."""
    try:
        return frozenset(path.name for path in folder.iterdir())
    except OSError:
        return frozenset()
