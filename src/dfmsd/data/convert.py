"""Conversion of data sets between the formats that dfmsd reads."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from dfmsd.data.classes import unite_classes
from dfmsd.data.formats.layout import plain_name
from dfmsd.data.opening import find_layout
from dfmsd.data.split import DetectionSplit
from dfmsd.data.writers import WRITERS
from dfmsd.errors import DfmsdError
from dfmsd.utils.files import new_folder

logger = logging.getLogger("dfmsd")
Format = Literal["coco", "yolo", "voc"]


def convert(source: str | Path, out: Path, to: Format = "coco") -> dict[str, tuple[int, int]]:
    """Write a data set in another format; images are copied.

    Args:
        source: Folder in any layout that dfmsd reads, or ``digits``.
        out: New or empty folder; it is created in one step.
        to: Format to write.

    Returns:
        Split -> number of images and number of boxes.

    Raises:
        DfmsdError: The source cannot be read or has no objects, or ``out`` is not empty or cannot be written.
    """
    if to not in WRITERS:
        raise DfmsdError(f"to must be one of {', '.join(WRITERS)}, got {to!r}")
    with new_folder(out) as folder:
        splits = _read(source, to)
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
    names = {name: plain_name(name) for name in layout.sources}
    if {"train", "val"} <= set(names.values()):
        names = {name: plain for name, plain in names.items() if plain != "trainval"}  # the two together
    if to != "coco":  # which have no names for others
        names = {name: plain if plain in ("val", "test") else "train" for name, plain in names.items()}
    if len(set(names.values())) < len(names):
        raise DfmsdError(
            f"{layout.root}: the splits {', '.join(names)} would be written as one; convert a part of them"
        )
    splits = {plain: DetectionSplit(layout.sources[name]) for name, plain in names.items()}
    return dict(zip(splits, unite_classes(list(splits.values())), strict=True))
