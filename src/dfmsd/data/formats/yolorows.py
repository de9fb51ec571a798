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
    images: Sequence[Entry],
    files: Sequence[Path | None],
    classes: Sequence[int],
    settings: Path,
    keypoints: tuple[int, int] | None = None,
) -> GroundTruth:
    """Read the boxes of all images of a split.

    Args:
        images: Images with id, width and height.
        files: Label file of each image; None for an image without objects.
        classes: Numbers of the classes, in the order of the categories.
        settings: YAML file, for messages.
        keypoints: Number of the key points that follow a box, and numbers of each; they are left out.

    Returns:
        Objects with boxes in pixels.

    Raises:
        DfmsdError: A row is malformed, or the rows are in another convention.
    """
    rows = [row for image, file in zip(images, files, strict=True) if file is not None for row in _parse(image, file)]
    for row in rows:
        _check_class(row, classes, settings)
    if keypoints is None:
        _check_poses(rows, settings)
    for row in rows:
        _check_length(row, settings, keypoints)
        if _has_box(row, keypoints) and min(row.values[3:BOX]) < 0:
            raise DfmsdError(f"{row.file}: line {row.line} has a box of negative width or height; correct it")
    _check_range(rows, settings, keypoints)
    _check_corners([row for row in rows if len(row.values) == BOX], settings)
    polygons = sum(len(row.values) > BOX for row in rows)
    if polygons:
        kind = "key points, which are left out" if keypoints else "a polygon: its box is computed"
        logger.warning("%s: %d of %d rows have %s", settings, polygons, len(rows), kind)
    places = {number: place for place, number in enumerate(classes)}
    return GroundTruth.of_boxes(
        [row.image["id"] for row in rows],
        [places[int(row.values[0])] for row in rows],
        [_box(row, keypoints) for row in rows],
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


def _check_poses(rows: Sequence[Row], settings: Path) -> None:
    """Refuse key points that nothing announces: nearly all longer rows look like such, and have equally many."""
    longer = [row for row in rows if len(row.values) > BOX]
    equal = len({len(row.values) for row in longer}) == 1
    if equal and sum(_is_pose(row.values[1:]) for row in longer) > FITTING * len(longer):
        raise DfmsdError(
            f"{longer[0].file}: line {longer[0].line} looks like a box with key points, as do {len(longer)} of "
            f"{len(rows)} rows; add kpt_shape to {settings}, or leave the key points out"
        )


def _is_pose(values: Sequence[float]) -> bool:
    """Tell key points from a polygon: by a flag 2, which no fraction is, or by points that lie in the box."""
    x, y, width, height, *rest = values
    flagged = len(rest) % 3 == 0 and set(rest[2::3]) <= {0, 1, 2}
    if flagged and 2 in rest[2::3]:
        return True
    step = 3 if flagged else 2
    points = list(zip(rest[::step], rest[1::step], strict=False))
    inside = (abs(px - x) <= width / 2 and abs(py - y) <= height / 2 for px, py in points if (px, py) != (0, 0))
    return bool(points) and all(inside)


def _check_length(row: Row, settings: Path, keypoints: tuple[int, int] | None) -> None:
    count = len(row.values)
    if keypoints is not None:
        wanted = BOX + keypoints[0] * keypoints[1]
        if count not in (BOX, wanted):
            raise DfmsdError(
                f"{row.file}: line {row.line} has {count} numbers, but a box and the kpt_shape {list(keypoints)} of "
                f"{settings.name} make {wanted}; correct one of them"
            )
    elif count < BOX or (count > BOX and count % 2 == 0):
        raise DfmsdError(
            f"{row.file}: line {row.line} has {count} numbers; a row is `class x y width height`, or `class` and the "
            "x and y of at least 3 points"
        )


def _check_range(rows: Sequence[Row], settings: Path, keypoints: tuple[int, int] | None) -> None:
    """Refuse numbers that are no fractions of the image."""

    def fractions(row: Row) -> list[float]:
        return row.values[1:BOX] if _has_box(row, keypoints) else row.values[1:]

    beyond = [row for row in rows if max(fractions(row)) > LIMIT or min(fractions(row)) < 1 - LIMIT]
    if beyond:
        row = beyond[0]
        pixels = 2 * len(beyond) > len(rows)
        advice = "so they are probably pixels; divide them by the width and height of the image"
        raise DfmsdError(
            f"{row.file}: line {row.line} has a {'box' if _has_box(row, keypoints) else 'point'} outside 0..1, as have "
            f"{len(beyond)} of {len(rows)} rows of {settings}{f', {advice}' if pixels else '; correct them'}"
        )


def _has_box(row: Row, keypoints: tuple[int, int] | None) -> bool:
    """Return whether a row begins with a box; otherwise it is a polygon."""
    return len(row.values) == BOX or keypoints is not None


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


def _box(row: Row, keypoints: tuple[int, int] | None) -> list[float]:
    """Return ``[x, y, width, height]`` in pixels."""
    sides = np.array([row.image["width"], row.image["height"]], dtype=np.float64)
    values = np.array(row.values[1:], dtype=np.float64)
    if _has_box(row, keypoints):
        size = values[2:4] * sides
        return [*(values[:2] * sides - size / 2).tolist(), *size.tolist()]
    points = values.reshape(-1, 2) * sides
    low, high = points.min(axis=0), points.max(axis=0)
    return [*low.tolist(), *(high - low).tolist()]
