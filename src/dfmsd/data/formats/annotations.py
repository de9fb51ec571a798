"""Reading and validation of COCO annotation files."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dfmsd.data.formats.boxes import MAX_COORDINATE, check_convention, segmentation_box
from dfmsd.data.formats.cocojson import Annotation, Category, Image, read_json
from dfmsd.data.formats.layout import CONTROL_CHARACTERS, Content
from dfmsd.data.formats.names import find_images
from dfmsd.data.imagecheck import read_sizes, turning_advice
from dfmsd.data.truth import GroundTruth
from dfmsd.errors import DfmsdError

logger = logging.getLogger("dfmsd")
E = TypeVar("E", Annotation, Category, Image)
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
    content = read_json(file)
    categories = sorted(_entries(content, "categories", Category, file), key=lambda category: category.id)
    images = _entries(content, "images", Image, file)
    annotations = _entries(content, "annotations", Annotation, file)
    del content
    for key, entries in (("categories", categories), ("images", images)):
        if not entries:
            raise DfmsdError(f"{file}: `{key}` is empty; list at least one, or point data.root at another folder")
    filled: Counter[str] = Counter()
    _check_categories(categories, file)
    categories = _without_twins(categories, annotations, file)
    _check_images(images, file)
    places = {image.id: place for place, image in enumerate(images)}
    labels = {category.id: label for label, category in enumerate(categories)}
    _check_annotations(annotations, places, labels, filled, file)
    numbers = {key: number for number, key in enumerate(sorted(places), 1)}
    truth = _to_truth(annotations, numbers, labels)
    owners = [places[annotation.image_id] for annotation in annotations]
    del annotations
    paths = find_images([image.file_name for image in images], folders, root, file)
    sizes = _read_sizes(images, paths, filled, file)
    for what, count in filled.items():
        logger.warning("%s: %d %s", file, count, what)
    check_convention(truth.boxes, np.array(sizes)[owners, ::-1], file)
    return Content(
        [
            {"id": numbers[image.id], "path": path, "height": height, "width": width}
            for image, path, (height, width) in zip(images, paths, sizes, strict=True)
        ],
        [{"id": category.id, "name": category.name} for category in categories],
        truth,
    )


def _entries(content: Mapping[str, Any], key: str, kind: type[E], file: Path) -> list[E]:
    """Return ``content[key]``, a list of objects with unique integer ids."""
    entries: list[E] = content[key]
    if not isinstance(entries, list):
        raise DfmsdError(f"{file}: no list `{key}`; a COCO detection file has images, annotations and categories")
    for index, entry in enumerate(entries):
        if not isinstance(entry, kind):
            raise DfmsdError(f"{file}: {key}[{index}] has no integer `id`: it is no object; add a unique one")
        given = entry.id
        if type(given) is not int or abs(given) > MAX_ID:
            entry.id = _integer(given)
            if entry.id is None:
                shown = f", but {_brief(given)}" if given is not None else ""
                raise DfmsdError(
                    f"{file}: {key}[{index}] has no integer `id` of at most 64 bits{shown}; add a unique one"
                )
    _check_unique((entry.id for entry in entries), f"{key} id", file)
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


def _check_categories(categories: Sequence[Category], file: Path) -> None:
    for category in categories:
        if category.name is not None and not isinstance(category.name, str):
            raise DfmsdError(
                f"{file}: category id {category.id}: name {_brief(category.name)} is no text; put it in quotes"
            )
        name = category.name = (category.name or "").strip()
        if not name:
            raise DfmsdError(f"{file}: category id {category.id} has no `name`; add it")
        if CONTROL_CHARACTERS.search(name):
            raise DfmsdError(f"{file}: category id {category.id}: name {name!r} has control characters; rename it")


def _without_twins(categories: Sequence[Category], annotations: Sequence[Annotation], file: Path) -> list[Category]:
    """Leave out unused categories with the name of another: Roboflow adds one that is called like the project."""
    named: dict[str, list[Category]] = defaultdict(list)
    for category in categories:
        named[category.name].append(category)
    if len(named) == len(categories):
        return list(categories)
    used = {_integer(annotation.category_id) for annotation in annotations}
    kept = [[one for one in same if one.id in used] or same[:1] for same in named.values()]
    _check_unique((category.name for same in kept for category in same), "category name", file)
    of_name = {category.name: category.id for (category,) in kept}
    for category in categories:
        if category.id != of_name[category.name]:
            logger.warning(
                "%s: category id %d is left out: no annotation has it, and id %d is %r, too",
                *(file, category.id, of_name[category.name], category.name),
            )
    return [category for category in categories if category.id == of_name[category.name]]


def _check_images(images: Sequence[Image], file: Path) -> None:
    for image in images:
        name, where = image.file_name, f"{file}: image id {image.id}"
        if not isinstance(name, str) or not name:
            raise DfmsdError(f"{where} has no `file_name`; add it")
        if CONTROL_CHARACTERS.search(name):
            raise DfmsdError(f"{where}: file_name {name!r} has control characters; rename the file")


def _read_sizes(
    images: Sequence[Image], paths: Sequence[Path], filled: Counter[str], file: Path
) -> list[tuple[int, int]]:
    """Return height and width of the image files, after comparing them with what the annotations say, if anything."""
    sizes = read_sizes(paths)
    for image, path, (height, width) in zip(images, paths, sizes, strict=True):
        given = (_side(image.width), _side(image.height))
        if type(image.width) is not int or type(image.height) is not int or None in given:
            filled[SIZE] += 1
        if any(side not in (None, own) for side, own in zip(given, (width, height), strict=True)):
            raise DfmsdError(
                f"{path} is {width} x {height} pixels (EXIF orientation applied), but {file} says "
                f"{given[0]} x {given[1]}; correct width, height and boxes of image id {image.id} there"
                f"{turning_advice(given, (width, height))}"
            )
    return sizes


def _side(value: object) -> int | None:
    side = _integer(value) if type(value) is not int else value
    return side if side is not None and side > 0 else None


def _check_annotations(
    annotations: Sequence[Annotation],
    image_ids: Collection[int],
    category_ids: Collection[int],
    filled: Counter[str],
    file: Path,
) -> None:
    for annotation in annotations:
        if type(annotation.image_id) is not int or annotation.image_id not in image_ids:
            annotation.image_id = _known(annotation, "image_id", image_ids, file)
        if type(annotation.category_id) is not int or annotation.category_id not in category_ids:
            annotation.category_id = _known(annotation, "category_id", category_ids, file)
        _check_box(annotation, filled, file)
        area, crowd = annotation.area, annotation.iscrowd
        if area is not None and not (_is_number(area, MAX_COORDINATE**2) and area >= 0):
            raise DfmsdError(
                f"{_where(annotation, file)}: area {area!r} is not a number of pixels; correct it or leave it out"
            )
        if crowd not in (None, 0, 1):
            raise DfmsdError(f"{_where(annotation, file)}: iscrowd {crowd!r} is not 0 or 1; correct it or leave it out")
        if annotation.ignore in (1, "1") and not crowd:
            annotation.iscrowd = 1
            filled[IGNORED] += 1


def _known(annotation: Annotation, key: str, ids: Collection[int], file: Path) -> int:
    value = getattr(annotation, key)
    number = value if type(value) is int else _integer(value)
    if number not in ids:
        raise DfmsdError(f"{_where(annotation, file)} has the unknown {key} {_brief(value)}; correct or remove it")
    assert number is not None
    return number


def _check_box(annotation: Annotation, filled: Counter[str], file: Path) -> None:
    box = annotation.bbox
    if not box or box == [0, 0, 0, 0]:
        try:
            computed = segmentation_box(annotation.read_segmentation())
        except (ValueError, TypeError, KeyError) as error:
            raise DfmsdError(
                f"{_where(annotation, file)} has no bbox, and its segmentation is no polygon or RLE ({error}); correct "
                "or remove it"
            ) from error
        if computed is not None:
            annotation.bbox = box = computed
            filled[BOX] += 1
    if not (isinstance(box, list) and len(box) == 4 and all(_is_number(side, MAX_COORDINATE) for side in box)):
        raise DfmsdError(
            f"{_where(annotation, file)}: bbox {_brief(box)} is not 4 finite numbers [x, y, width, height]; correct it"
        )


def _to_truth(annotations: Sequence[Annotation], numbers: Mapping[int, int], labels: Mapping[int, int]) -> GroundTruth:
    truth = GroundTruth.of_boxes(
        [numbers[annotation.image_id] for annotation in annotations],
        [labels[annotation.category_id] for annotation in annotations],
        [annotation.bbox for annotation in annotations],
    )
    given = np.array([annotation.area or 0 for annotation in annotations], np.float64)
    return truth._replace(
        areas=np.where(given == 0, truth.areas, given),
        crowds=np.array([bool(annotation.iscrowd) for annotation in annotations], np.bool_),
    )


def _where(annotation: Annotation, file: Path) -> str:
    return f"{file}: annotation id {annotation.id}"


def _is_number(value: Any, limit: float) -> bool:
    """Return whether a value is a finite number within ``[-limit, limit]``; integers may have any length."""
    return type(value) in (int, float) and -limit <= value <= limit
