"""XML files of Pascal VOC: the objects of an image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from dfmsd.data.formats.boxes import MAX_COORDINATE
from dfmsd.data.formats.layout import Entry
from dfmsd.data.imagecheck import turning_advice
from dfmsd.errors import DfmsdError

CORNERS = ("xmin", "ymin", "xmax", "ymax")
TURNED = 0.25
"""Share of boxes with their corners in reverse, from which on they are something else."""
Array = NDArray[np.float64]


def read_objects(file: Path, image: Entry) -> Iterator[tuple[str, int, list[float]]]:
    """Yield name, image id and the numbers of each object's ``bndbox``.

    Args:
        file: XML file.
        image: Its image, with id, path, width and height.

    Raises:
        DfmsdError: The file is malformed, or contradicts the size of the image.
    """
    try:
        tree = ElementTree.fromstring(file.read_bytes())
    except (ElementTree.ParseError, ValueError, LookupError, OSError) as error:
        raise DfmsdError(f"{file}: not valid XML ({error}); correct or remove it") from error
    _check_size(tree, image, file)
    for number, element in enumerate(tree.findall("object"), 1):
        name = (element.findtext("name") or "").strip()
        if not name:
            raise DfmsdError(f"{file}: object {number} has no name; add it")
        corners = [_number(element.find(f"bndbox/{corner}"), number, corner, file) for corner in CORNERS]
        yield name, image["id"], corners


def to_boxes(corners: Array, file: Path) -> Array:
    """Convert corners, pixels that count from 1 and belong to the box, to ``[x, y, width, height]``.

    Args:
        corners: ``M x 4``: xmin, ymin, xmax and ymax.
        file: File or folder of the split, for messages.

    Raises:
        DfmsdError: The boxes are in another convention.
    """
    fractions = (corners <= 1).all(axis=1)
    if 2 * fractions.sum() > len(corners) and (corners[fractions] % 1 != 0).any():
        raise DfmsdError(
            f"{file}: {fractions.sum()} of {len(corners)} boxes lie within 0..1, so they are probably fractions of the "
            "image; multiply them by its width and height"
        )
    low, high = corners[:, :2], corners[:, 2:]
    turned = high <= low - 1  # a box of less than a pixel has its xmax just below its xmin
    count = turned.any(axis=1).sum()
    if count > TURNED * len(corners):
        raise DfmsdError(
            f"{file}: {count} of {len(corners)} boxes have xmax below xmin or ymax below ymin, so these are "
            "probably width and height; write the corners"
        )
    low, high = np.where(turned, high, low) - 1, np.where(turned, low, high)
    return np.concatenate([low, high - low], axis=1)


def _check_size(tree: Any, image: Entry, file: Path) -> None:
    texts = [(tree.findtext(f"size/{side}") or "0").strip() for side in ("width", "height")]
    width, height = (int(float(text)) if text.replace(".", "", 1).isdecimal() else 0 for text in texts)
    sides = (width, height)
    if all(sides) and sides != (image["width"], image["height"]):
        raise DfmsdError(
            f"{file}: its size is {sides[0]} x {sides[1]}, but {image['path']} has {image['width']} x "
            f"{image['height']} pixels (EXIF orientation applied); correct the size and the boxes"
            f"{turning_advice(sides, (image['width'], image['height']))}"
        )


def _number(element: Any, number: int, corner: str, file: Path) -> float:
    text = "" if element is None else (element.text or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= MAX_COORDINATE:
        raise DfmsdError(f"{file}: object {number}: {corner} is {text!r}, no finite number of pixels; correct it")
    return value
