"""Reading and validation of COCO annotation files."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Hashable, Iterable
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from dfmsd.errors import DfmsdError

Entry = dict[str, Any]
CONVERT_HINT = "`dfmsd convert` writes it from VOC or YOLO data"
MAX_ID = 2**63 - 1
"""COCO evaluation uses 64-bit ids."""
MAX_COORDINATE = 1e9
"""In pixels; products of two coordinates below it stay exact in float64."""
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters and lone surrogates, which file systems, pages and terminals reject."""


class CocoFile(NamedTuple):
    """Validated entries of an annotation file."""

    images: list[Entry]
    categories: list[Entry]
    """Sorted by id."""
    annotations: list[Entry]


def read_annotations(file: Path, image_folder: Path) -> CocoFile:
    """Read and validate an annotation file, without access to the images.

    Args:
        file: JSON file with ``images``, ``categories`` and ``annotations``.
        image_folder: Folder that the file names are relative to, for messages.

    Raises:
        DfmsdError: The file is malformed or contradicts itself.
    """
    content = _read_json(file)
    categories = sorted(_entries(content, "categories", file), key=lambda category: category["id"])
    images = _entries(content, "images", file)
    annotations = _entries(content, "annotations", file)
    for key, entries in (("categories", categories), ("images", images)):
        if not entries:
            raise DfmsdError(f"{file}: `{key}` is empty; list at least one, or point data.root at another folder")
    _check_categories(categories, file)
    _check_images(images, image_folder, file)
    _check_annotations(
        annotations, {image["id"] for image in images}, {category["id"] for category in categories}, file
    )
    return CocoFile(images, categories, annotations)


def _read_json(file: Path) -> Entry:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))  # some editors write a byte order mark
    except (OSError, ValueError, RecursionError) as error:
        raise DfmsdError(f"{file}: not valid JSON ({error}); write the file again") from error
    if not isinstance(content, dict):
        raise DfmsdError(
            f"{file}: expected a JSON object with images, annotations and categories, got a {type(content).__name__}"
        )
    return content


def _entries(content: Entry, key: str, file: Path) -> list[Entry]:
    """Return ``content[key]``, a list of objects with unique integer ids."""
    entries = content.get(key)
    if not isinstance(entries, list):
        raise DfmsdError(
            f"{file}: no list `{key}`; a COCO detection file has images, annotations and categories; {CONVERT_HINT}"
        )
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or type(entry.get("id")) is not int or abs(entry["id"]) > MAX_ID:
            raise DfmsdError(f"{file}: {key}[{index}] has no integer `id` of at most 64 bits; add a unique one")
    _check_unique((entry["id"] for entry in entries), f"{key} id", file)
    return entries


def _check_unique(values: Iterable[Hashable], what: str, file: Path) -> None:
    seen: set[Hashable] = set()
    for value in values:
        if value in seen:
            raise DfmsdError(f"{file}: {what} {value!r} occurs more than once; make it unique")
        seen.add(value)


def _check_categories(categories: list[Entry], file: Path) -> None:
    for category in categories:
        if not isinstance(category.get("name"), str) or not category["name"]:
            raise DfmsdError(f"{file}: category id {category['id']} has no `name`; add it")
        if CONTROL_CHARACTERS.search(category["name"]):
            raise DfmsdError(
                f"{file}: category id {category['id']}: name {category['name']!r} has control characters; rename it"
            )
    _check_unique((category["name"] for category in categories), "category name", file)


def _check_images(images: list[Entry], folder: Path, file: Path) -> None:
    for image in images:
        name, where = image.get("file_name"), f"{file}: image id {image['id']}"
        if not isinstance(name, str) or not name:
            raise DfmsdError(f"{where} has no `file_name`; add it")
        if CONTROL_CHARACTERS.search(name):
            raise DfmsdError(f"{where}: file_name {name!r} has control characters; rename the file")
        if PurePath(name).anchor or ".." in PurePath(name).parts:
            raise DfmsdError(f"{where}: file_name {name!r} leaves {folder}; write it relative to that folder")
        if any(type(image.get(key)) is not int or image[key] < 1 for key in ("width", "height")):
            raise DfmsdError(f"{where} ({name}) has no positive integer `width` and `height`; add them")


def _check_annotations(
    annotations: list[Entry], image_ids: Collection[int], category_ids: Collection[int], file: Path
) -> None:
    for annotation in annotations:
        where = f"{file}: annotation id {annotation['id']}"
        for key, ids in (("image_id", image_ids), ("category_id", category_ids)):
            value = annotation.get(key)
            if type(value) is not int or value not in ids:
                raise DfmsdError(f"{where} has the unknown {key} {value!r}; correct or remove it")
        box, area, crowd = (annotation.get(key) for key in ("bbox", "area", "iscrowd"))
        if not (isinstance(box, list) and len(box) == 4 and all(_is_number(side, MAX_COORDINATE) for side in box)):
            raise DfmsdError(f"{where}: bbox {box!r} is not 4 finite numbers [x, y, width, height]; correct it")
        if area is not None and not (_is_number(area, MAX_COORDINATE**2) and area >= 0):
            raise DfmsdError(f"{where}: area {area!r} is not a number of pixels; correct it or leave it out")
        if crowd not in (None, 0, 1):
            raise DfmsdError(f"{where}: iscrowd {crowd!r} is not 0 or 1; correct it or leave it out")


def _is_number(value: object, limit: float) -> bool:
    """Return whether a value is a finite number within ``[-limit, limit]``; integers may have any length."""
    return type(value) in (int, float) and -limit <= value <= limit  # type: ignore[operator]
