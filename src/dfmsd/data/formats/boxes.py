"""Boxes that are computed from segmentations, and boxes in other conventions than a format's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfmsd.errors import DfmsdError

MAX_COORDINATE = 1e9
"""In pixels; products of two coordinates below it stay exact in float64."""
MAX_SIDE = 2**16
"""Side of an image in pixels, in a run-length encoding."""
TOLERANCE = 2.0
"""Pixels that a box may reach beyond its image by rounding."""
SHARE = 0.25
"""Share of boxes beyond their image, from which on another convention is looked for."""
FITTING = 0.95
"""Share of boxes that fit their image in another convention, above which it is theirs: a few may be bad in any."""


Array = NDArray[np.float64]


def segmentation_box(segmentation: Any) -> list[float] | None:
    """Compute the box of a COCO segmentation, as pycocotools does.

    Args:
        segmentation: Polygons ``[[x, y, x, y, ...], ...]`` in pixels, or a run-length encoding ``{counts, size}``.

    Returns:
        ``[x, y, width, height]`` in pixels, or None if there is no segmentation.

    Raises:
        ValueError: The segmentation is malformed.
    """
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        return _rle_box(segmentation)
    points = np.concatenate([np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation])
    if not len(points) or not np.isfinite(points).all():
        raise ValueError("not finite points")
    low, high = points.min(axis=0), points.max(axis=0)
    return [*low.tolist(), *(high - low).tolist()]


def _rle_box(rle: dict[str, Any]) -> list[float]:
    from hotcoco import mask

    counts, size = rle["counts"], rle["size"]
    height, width = size
    if any(type(side) is not int or not 0 < side < MAX_SIDE for side in size):
        raise ValueError(f"size {size}")
    if isinstance(counts, list):
        if any(type(count) is not int or count < 0 for count in counts) or sum(counts) != height * width:
            raise ValueError("counts do not add up to the image")
        rle = mask.fr_py_objects({"counts": counts, "size": size}, height, width)
    return [float(side) for side in mask.to_bbox(rle)]


def check_convention(boxes: Array, sides: NDArray[np.integer], file: Path) -> None:
    """Refuse boxes that are fractions of the image, or corners in place of a corner and the size.

    Args:
        boxes: ``M x 4``: x, y, width and height, which should be in pixels.
        sides: ``M x 2``: width and height of the image of each box.
        file: Annotation file, for messages.

    Raises:
        DfmsdError: Most boxes lie in 0..1, or many reach beyond their image and nearly all fit if read in another
            convention.
    """
    sized = (boxes[:, 2:] > 0).all(axis=1)
    array, limits = boxes[sized], sides[sized].astype(np.float64)
    if not len(array):
        return
    fractions = ((array >= 0) & (array <= 1)).all(axis=1)
    if 2 * fractions.sum() > len(array) and (array % 1 != 0).any():
        raise DfmsdError(
            f"{file}: {fractions.sum()} of {len(array)} boxes lie within 0..1, so they are probably fractions of the "
            "image; multiply them by its width and height"
        )
    beyond = _beyond(array[:, :2], array[:, 2:], limits)
    if beyond.sum() <= SHARE * len(array):
        return
    first, second = array[:, :2], array[:, 2:]
    readings = {
        "x1, y1, x2, y2": (first, second - first),
        "the centre, width and height": (first - second / 2, second),
        "y, x, height, width": (first[:, ::-1], second[:, ::-1]),
    }
    for convention, (corner, size) in readings.items():
        fits = (size > 0).all(axis=1) & ~_beyond(corner, size, limits)
        if fits.mean() > FITTING:
            raise DfmsdError(
                f"{file}: {beyond.sum()} of {len(array)} boxes reach beyond their image, and {fits.sum()} of "
                f"{len(array)} fit if read as {convention}; write x, y, width, height"
            )


def _beyond(corner: Array, size: Array, limits: Array) -> NDArray[np.bool_]:
    """Return which boxes reach beyond their image."""
    beyond = (corner < -TOLERANCE) | (corner + size > limits + TOLERANCE)
    return np.logical_or(beyond[:, 0], beyond[:, 1])
