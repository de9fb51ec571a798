"""Conversion of data sets between the formats that dfmsd reads."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from dfmsd.data.classes import unite_classes
from dfmsd.data.formats.layout import plain_name, without_unions
from dfmsd.data.opening import find_layout
from dfmsd.data.shardwriter import write_shards
from dfmsd.data.split import DetectionSplit
from dfmsd.data.writers import Counts, Splits, write_coco, write_voc, write_yolo
from dfmsd.errors import DfmsdError
from dfmsd.utils.files import new_folder
from dfmsd.utils.threads import map_in_threads

logger = logging.getLogger("dfmsd")
Format = Literal["coco", "yolo", "voc", "shards"]
WRITERS: dict[str, Callable[[Splits, Path], Counts]] = {
    "coco": write_coco,
    "yolo": write_yolo,
    "voc": write_voc,
    "shards": write_shards,
}


def convert(source: str | Path, out: Path, to: Format = "coco", *, skip_broken: bool = False) -> Counts:
    """Write a data set in another format; images are copied.

    Args:
        source: Folder in any layout that dfmsd reads, or ``digits``.
        out: New or empty folder; it is created in one step.
        to: Format to write; ``shards`` are tar files.
        skip_broken: Leave out images that cannot be decoded, with a warning that names them. All images are decoded
            for this, and for shards, where a broken one could only be found by whoever trains on them.

    Returns:
        Split -> number of images and number of boxes.

    Raises:
        DfmsdError: The source cannot be read or has no objects, an image is broken, or ``out`` is not empty or cannot
            be written.
    """
    if to not in WRITERS:
        raise DfmsdError(f"to must be one of {', '.join(WRITERS)}, got {to!r}")
    with new_folder(out) as folder:
        splits = _read(source, to)
        if to == "shards" or skip_broken:
            splits = {name: _decodable(split, skip_broken) for name, split in splits.items()}
        if not any(len(split.truth.labels) for split in splits.values()):
            raise DfmsdError(
                f"{source}: no annotated object in {', '.join(splits)}; annotate objects, or choose another data set"
            )
        counts = WRITERS[to](splits, folder)
    dropped = sum(len(split.truth.labels) for split in splits.values()) - sum(boxes for _, boxes in counts.values())
    if dropped:
        logger.warning("%s: %d crowds and boxes outside their image are left out: %s has none", out, dropped, to)
    return counts


def _read(source: str | Path, to: Format) -> dict[str, DetectionSplit]:
    layout = find_layout(source)
    names = {name: plain_name(name) for name in without_unions(layout.sources)}
    if to in ("yolo", "voc"):  # which have no names for others
        names = {name: plain if plain in ("val", "test") else "train" for name, plain in names.items()}
    if len(set(names.values())) < len(names):
        raise DfmsdError(
            f"{layout.root}: the splits {', '.join(names)} would be written as one; convert a part of them"
        )
    splits = {plain: DetectionSplit(layout.sources[name]) for name, plain in names.items()}
    return dict(zip(splits, unite_classes(list(splits.values())), strict=True))


def _decodable(split: DetectionSplit, skip: bool) -> DetectionSplit:
    """Return the split without images that cannot be decoded, or refuse them."""
    complaints = map_in_threads(lambda index: _complaint(split, index), range(len(split)))
    broken = [complaint for complaint in complaints if complaint]
    if not broken:
        return split
    if not skip:
        raise DfmsdError(
            f"{split.file}: {len(broken)} of {len(split)} images are broken, the first: {broken[0]}; --skip-broken "
            "leaves such images out"
        )
    if len(broken) == len(split):
        raise DfmsdError(f"{split.file}: all {len(split)} images are broken, the first: {broken[0]}")
    for complaint in broken:
        logger.warning("left out: %s", complaint)
    return split.subset([index for index, complaint in enumerate(complaints) if not complaint])


def _complaint(split: DetectionSplit, index: int) -> str | None:
    try:
        split[index]
    except DfmsdError as error:
        return str(error)
    return None
