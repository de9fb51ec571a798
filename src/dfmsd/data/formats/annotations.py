"""Reading and validation of COCO annotation files."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

from dfmsd.data.formats.boxes import MAX_COORDINATE, check_convention, segmentation_box
from dfmsd.data.formats.layout import CONTROL_CHARACTERS, Content, Entry
from dfmsd.data.formats.names import find_images
from dfmsd.data.formats.text import read_text
from dfmsd.data.imagecheck import read_sizes
from dfmsd.errors import DfmsdError

logger = logging.getLogger("dfmsd")
MAX_ID = 2**63 - 1
SIZE, BOX, IGNORED = (
    "images have no usable width and height: taken from their files",
    "annotations have no box: computed from their segmentation",
    'annotations have "ignore": 1 and count as crowds',
)


def read_annotations(file: Path, folders: Sequence[Path], root: Path) -> Content:
    """Read and validate an annotation file and the headers of its images.

    What can be told without doubt is filled in and counted in a warning: ids and sizes written as text, sizes from the
    image files, boxes from segmentations.

    Args:
        file: JSON file with ``images``, ``categories`` and ``annotations``.
        folders: Folders that the file names may be relative to.
        root: Folder of the data set, which holds all images.

    Raises:
        DfmsdError: The file is malformed or contradicts itself or the images, or images are missing.
    """
    content = _read_json(file)
    categories = sorted(_entries(content, "categories", file), key=lambda category: category["id"])
    images = _entries(content, "images", file)
    annotations = _entries(content, "annotations", file)
    for key, entries in (("categories", categories), ("images", images)):
        if not entries:
            raise DfmsdError(f"{file}: `{key}` is empty; list at least one, or point data.root at another folder")
    filled: Counter[str] = Counter()
    _check_categories(categories, file)
    _check_images(images, file)
    ids = {image["id"] for image in images}, {category["id"] for category in categories}
    _check_annotations(annotations, *ids, filled, file)
    _fill_sizes(images, find_images([image["file_name"] for image in images], folders, root, file), filled, file)
    for what, count in filled.items():
        logger.warning("%s: %d %s", file, count, what)
    _check_convention(annotations, images, file)
    _number(images, annotations)
    return Content(images, categories, annotations)


def _read_json(file: Path) -> Entry:
    if not file.is_file():
        raise DfmsdError(f"{file} is missing; put the COCO annotations there")
    text = read_text(file)
    if not text.strip():
        raise DfmsdError(f"{file}: the file is empty; write it again")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
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
        raise DfmsdError(f"{file}: no list `{key}`; a COCO detection file has images, annotations and categories")
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DfmsdError(f"{file}: {key}[{index}] has no integer `id`: it is no object; add a unique one")
        given = entry.get("id")
        if type(given) is not int or abs(given) > MAX_ID:
            entry["id"] = _integer(given)
            if entry["id"] is None:
                shown = f", but {_brief(given)}" if "id" in entry and given is not None else ""
                raise DfmsdError(
                    f"{file}: {key}[{index}] has no integer `id` of at most 64 bits{shown}; add a unique one"
                )
    _check_unique((entry["id"] for entry in entries), f"{key} id", file)
    return entries


def _integer(value: object) -> int | None:
    """Return an integer that may be written as text or as a float; None for anything else."""
    if type(value) is float and value.is_integer():
        value = int(value)
    elif isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,19}(\.0+)?\s*", value):
        value = int(value.partition(".")[0])
    return value if type(value) is int and abs(value) <= MAX_ID else None


def _brief(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."


def _check_unique(values: Iterable[Hashable], what: str, file: Path) -> None:
    seen: set[Hashable] = set()
    for value in values:
        if value in seen:
            raise DfmsdError(f"{file}: {what} {value!r} occurs more than once; make it unique")
        seen.add(value)


def _check_categories(categories: list[Entry], file: Path) -> None:
    for category in categories:
        if isinstance(category.get("name"), str):
            category["name"] = category["name"].strip()
        if not isinstance(category.get("name"), str) or not category["name"]:
            raise DfmsdError(f"{file}: category id {category['id']} has no `name`; add it")
        if CONTROL_CHARACTERS.search(category["name"]):
            raise DfmsdError(
                f"{file}: category id {category['id']}: name {category['name']!r} has control characters; rename it"
            )
    _check_unique((category["name"] for category in categories), "category name", file)


def _check_images(images: list[Entry], file: Path) -> None:
    for image in images:
        name, where = image.get("file_name"), f"{file}: image id {image['id']}"
        if not isinstance(name, str) or not name:
            raise DfmsdError(f"{where} has no `file_name`; add it")
        if CONTROL_CHARACTERS.search(name):
            raise DfmsdError(f"{where}: file_name {name!r} has control characters; rename the file")


def _fill_sizes(images: list[Entry], paths: Sequence[Path], filled: Counter[str], file: Path) -> None:
    """Compare width and height with the image files, or take them from there where they are none."""
    for image, path, (height, width) in zip(images, paths, read_sizes(paths), strict=True):
        given = tuple(_side(image.get(key)) for key in ("width", "height"))
        if None in given or any(type(image[key]) is not int for key in ("width", "height")):
            filled[SIZE] += 1
        if any(side not in (None, own) for side, own in zip(given, (width, height), strict=True)):
            raise DfmsdError(
                f"{path} is {width} x {height} pixels (EXIF orientation applied), but {file} says "
                f"{given[0]} x {given[1]}; correct width, height and boxes of image id {image['id']} there"
            )
        image.update(path=path, width=width, height=height)


def _side(value: object) -> int | None:
    side = _integer(value) if type(value) is not int else value
    return side if side is not None and side > 0 else None


def _check_annotations(
    annotations: list[Entry],
    image_ids: Collection[int],
    category_ids: Collection[int],
    filled: Counter[str],
    file: Path,
) -> None:
    for annotation in annotations:
        for key, ids in (("image_id", image_ids), ("category_id", category_ids)):
            value = annotation.get(key)
            if type(value) is not int:
                annotation[key] = _integer(value)
            if annotation[key] not in ids:
                raise DfmsdError(
                    f"{_where(annotation, file)} has the unknown {key} {_brief(value)}; correct or remove it"
                )
        _check_box(annotation, filled, file)
        area, crowd = annotation.get("area"), annotation.get("iscrowd")
        if area is not None and not (_is_number(area, MAX_COORDINATE**2) and area >= 0):
            raise DfmsdError(
                f"{_where(annotation, file)}: area {area!r} is not a number of pixels; correct it or leave it out"
            )
        if crowd not in (None, 0, 1):
            raise DfmsdError(f"{_where(annotation, file)}: iscrowd {crowd!r} is not 0 or 1; correct it or leave it out")
        if annotation.get("ignore") in (1, "1") and not crowd:
            annotation["iscrowd"] = 1
            filled[IGNORED] += 1


def _check_box(annotation: Entry, filled: Counter[str], file: Path) -> None:
    box = annotation.get("bbox")
    if not box or box == [0, 0, 0, 0]:
        try:
            computed = segmentation_box(annotation.get("segmentation"))
        except (ValueError, TypeError, KeyError) as error:
            raise DfmsdError(
                f"{_where(annotation, file)} has no bbox, and its segmentation is no polygon or RLE ({error}); correct "
                "or remove it"
            ) from error
        if computed is not None:
            annotation["bbox"] = box = computed
            filled[BOX] += 1
    if not (isinstance(box, list) and len(box) == 4 and all(_is_number(side, MAX_COORDINATE) for side in box)):
        raise DfmsdError(
            f"{_where(annotation, file)}: bbox {_brief(box)} is not 4 finite numbers [x, y, width, height]; correct it"
        )


def _where(annotation: Entry, file: Path) -> str:
    return f"{file}: annotation id {annotation['id']}"


def _is_number(value: Any, limit: float) -> bool:
    """Return whether a value is a finite number within ``[-limit, limit]``; integers may have any length."""
    return type(value) in (int, float) and -limit <= value <= limit


def _check_convention(annotations: list[Entry], images: list[Entry], file: Path) -> None:
    sides = {image["id"]: (image["width"], image["height"]) for image in images}
    check_convention(
        [annotation["bbox"] for annotation in annotations],
        [sides[annotation["image_id"]] for annotation in annotations],
        file,
    )


def _number(images: list[Entry], annotations: list[Entry]) -> None:
    """Number the images from 1 in the order of their ids."""
    number = {key: place for place, key in enumerate(sorted(image["id"] for image in images), 1)}
    for image in images:
        image["id"] = number[image["id"]]
    for annotation in annotations:
        annotation["image_id"] = number[annotation["image_id"]]
