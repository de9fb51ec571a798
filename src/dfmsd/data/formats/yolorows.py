"""Rows of YOLO label files: ``class x y width height`` in fractions of the image, or ``class`` and a polygon."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dfmsd.data.formats.boxes import FITTING, SHARE
from dfmsd.data.formats.layout import Entry
from dfmsd.data.formats.text import read_text
from dfmsd.data.truth import GroundTruth
from dfmsd.errors import DfmsdError

logger = logging.getLogger("dfmsd")
BOX = 5
"""Numbers in a row with a box alone."""
LIMIT = 1.01
"""Largest fraction that rounding may give, as in Ultralytics' own check."""


class Row(NamedTuple):
    """One object."""

    file: Path
    line: int
    image: Entry
    values: list[float]


def read_rows(
    images: Sequence[Entry], files: Sequence[Path | None], classes: Sequence[int], settings: Path, *, keypoints: bool
) -> GroundTruth:
    """Read the boxes of all images of a split.

    Args:
        images: Images with id, width and height.
        files: Label file of each image; None for an image without objects.
        classes: Numbers of the classes, in the order of the categories.
        settings: YAML file, for messages.
        keypoints: Boxes are followed by key points, which are left out.

    Returns:
        Objects with boxes in pixels.

    Raises:
        DfmsdError: A row is malformed, or the rows are in another convention.
    """
    rows = [row for image, file in zip(images, files, strict=True) if file is not None for row in _parse(image, file)]
    for row in rows:
        _check_class(row, classes, settings)
        if len(row.values) < BOX or (len(row.values) > BOX and len(row.values) % 2 == 0 and not keypoints):
            raise DfmsdError(
                f"{row.file}: line {row.line} has {len(row.values)} numbers; a row is `class x y width height`, or "
                "`class` and the x and y of at least 3 points"
            )
        if (len(row.values) == BOX or keypoints) and min(row.values[3:BOX]) < 0:
            raise DfmsdError(f"{row.file}: line {row.line} has a box of negative width or height; correct it")
    _check_convention(rows, settings, keypoints=keypoints)
    polygons = sum(len(row.values) > BOX for row in rows)
    if polygons:
        kind = "key points, which are left out" if keypoints else "a polygon: its box is computed"
        logger.warning("%s: %d of %d rows have %s", settings, polygons, len(rows), kind)
    places = {number: place for place, number in enumerate(classes)}
    return GroundTruth.of_boxes(
        [row.image["id"] for row in rows],
        [places[int(row.values[0])] for row in rows],
        [_box(row, keypoints=keypoints) for row in rows],
    )


def _parse(image: Entry, file: Path) -> Iterator[Row]:
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = [float(word) for word in line.split()]
        except ValueError as error:
            raise DfmsdError(f"{file}: line {number} is not a row of numbers ({error}); correct it") from error
        if not np.isfinite(values).all():
            raise DfmsdError(f"{file}: line {number} has a number that is not finite; correct it")
        yield Row(file, number, image, values)


def _check_class(row: Row, classes: Collection[int], settings: Path) -> None:
    if row.values[0] not in classes:
        raise DfmsdError(
            f"{row.file}: line {row.line} has class {row.values[0]:g}, which has no name in {settings.name} (it has "
            f"{min(classes)} to {max(classes)}); add the name or correct the row"
        )


def _check_convention(rows: Sequence[Row], settings: Path, *, keypoints: bool) -> None:
    """Refuse pixels, key points that nothing announces, and corners in place of centre and size."""
    beyond = [row for row in rows if max(row.values[1:BOX]) > LIMIT or min(row.values[1:BOX]) < 1 - LIMIT]
    if beyond:
        row = beyond[0]
        raise DfmsdError(
            f"{row.file}: line {row.line} has a box outside 0..1, as have {len(beyond)} of {len(rows)} rows of "
            f"{settings}, so they are probably pixels; divide them by the width and height of the image"
        )
    longer = [row for row in rows if len(row.values) > BOX]
    if longer and not keypoints and _are_poses(longer):
        raise DfmsdError(
            f"{longer[0].file}: line {longer[0].line} looks like a box with key points, as do {len(longer)} of "
            f"{len(rows)} rows; add kpt_shape to {settings}, or leave the key points out"
        )
    _check_corners([row for row in rows if len(row.values) == BOX], settings)


def _are_poses(rows: Sequence[Row]) -> bool:
    """Tell key points from polygons: by values above 1, or by equally many points that lie in the box of each row."""
    if any(max(row.values[BOX:]) > LIMIT or min(row.values[BOX:]) < 1 - LIMIT for row in rows):
        return True
    return len({len(row.values) for row in rows}) == 1 and all(_holds_points(row.values[1:]) for row in rows)


def _holds_points(values: Sequence[float]) -> bool:
    x, y, width, height = values[:4]
    step = 3 if len(values[4:]) % 3 == 0 and set(values[6::3]) <= {0, 1, 2} else 2
    points = list(zip(values[4::step], values[5::step], strict=False))
    return all(abs(px - x) <= width / 2 and abs(py - y) <= height / 2 for px, py in points if (px, py) != (0, 0))


def _check_corners(rows: Sequence[Row], settings: Path) -> None:
    array = np.array([row.values[1:BOX] for row in rows], dtype=np.float64).reshape(-1, 4)
    if not len(array):
        return
    low, high = array[:, :2] - array[:, 2:] / 2, array[:, :2] + array[:, 2:] / 2
    beyond = ((low < 1 - LIMIT) | (high > LIMIT)).any(axis=1)
    fits = (array[:, 2:] > array[:, :2]).all(axis=1)
    if beyond.mean() > SHARE and fits.mean() > FITTING:
        raise DfmsdError(
            f"{settings}: {beyond.sum()} of {len(array)} boxes reach beyond their image, and {fits.sum()} of "
            f"{len(array)} fit if read as x1, y1, x2, y2; write x and y of the centre, width and height"
        )


def _box(row: Row, *, keypoints: bool) -> list[float]:
    """Return ``[x, y, width, height]`` in pixels."""
    sides = np.array([row.image["width"], row.image["height"]], dtype=np.float64)
    values = np.array(row.values[1:], dtype=np.float64)
    if len(row.values) == BOX or keypoints:
        size = values[2:4] * sides
        return [*(values[:2] * sides - size / 2).tolist(), *size.tolist()]
    points = values.reshape(-1, 2) * sides
    low, high = points.min(axis=0), points.max(axis=0)
    return [*low.tolist(), *(high - low).tolist()]
