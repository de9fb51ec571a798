"""Label files of YOLO data sets, by the images that they belong to."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from os.path import splitext
from pathlib import Path

from dfmsd.data.images import image_suffixes
from dfmsd.utils.files import is_hidden

logger = logging.getLogger("dfmsd")


def label_file(image: Path, names_in: Callable[[Path], Mapping[str, str]]) -> Path | None:
    """Return the label file of an image: in ``labels`` where the image is in ``images``, or beside it.

    Args:
        image: Image file.
        names_in: Lists the files in a folder, as `file_names` does.
    """
    for place in label_places(image):
        name = names_in(place.parent).get(place.name)
        if name is not None:
            return place.parent / name
    return None


def label_places(image: Path) -> list[Path]:
    """Return the label files that an image may have, the likeliest first."""
    place = next((number for number, part in enumerate(image.parts[::-1]) if part == "images"), None)
    beside = image.with_suffix(".txt")
    if place is None:
        return [beside]
    parts = list(beside.parts)
    parts[-1 - place] = "labels"
    return [Path(*parts), beside]


def warn_of_orphans(images: Sequence[Path], names_in: Callable[[Path], Mapping[str, str]], where: str) -> None:
    """Warn of label files in folders ``labels`` whose images are not there, or in a format that is not read.

    Args:
        images: Image files of a split.
        names_in: Lists the files in a folder, as `file_names` does.
        where: What has these images, for the message.
    """
    folders = {image.parent: label_places(image)[0].parent for image in images}
    suffixes = image_suffixes()
    labels, orphans = 0, list[Path]()
    for folder, label_folder in folders.items():
        if label_folder == folder:  # where other text files may be, too
            continue
        stems = {stem for stem, suffix in map(splitext, names_in(folder)) if suffix in suffixes}
        names = names_in(label_folder)
        files = [name for name in names if name.endswith(".txt") and name != "classes.txt" and not is_hidden(name)]
        labels += len(files)
        orphans += [label_folder / names[name] for name in files if splitext(name)[0] not in stems]
    if orphans:
        logger.warning(
            "%s: %d of %d label files have no image, the first is %s: add the images or remove the files",
            *(where, len(orphans), labels, min(orphans)),
        )


def warn_of_bare(images: Sequence[Path], labels: Sequence[Path | None], where: str) -> None:
    """Warn of images without a label file, which may be meant or not.

    Args:
        images: Image files of a split.
        labels: Label file of each, or None.
        where: What has these images, for the message.
    """
    bare = [image for image, label in zip(images, labels, strict=True) if label is None]
    if bare:
        logger.warning(
            "%s: %d of %d images have no label file and count as images without objects, the first is %s",
            *(where, len(bare), len(images), bare[0].name),
        )


def file_names(folder: Path) -> dict[str, str]:
    """Map the name of each file in a folder, its suffix in lower case, to the name; none if it cannot be read."""
    try:
        names = sorted(os.listdir(folder))  # `a.TXT` before `a.txt`, which is the one to keep
    except OSError:
        return {}
    return {stem + suffix.lower(): f"{stem}{suffix}" for stem, suffix in map(splitext, names)}
