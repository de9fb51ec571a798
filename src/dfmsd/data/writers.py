"""Writers of data sets in the formats that `dfmsd.data.formats` reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import yaml

from dfmsd.data.images import image_suffix
from dfmsd.data.records import ImageRecord
from dfmsd.data.shards import read_bytes
from dfmsd.data.split import DetectionSplit
from dfmsd.utils.files import write_json, write_text

Splits = Mapping[str, DetectionSplit]
Counts = dict[str, tuple[int, int]]
"""Split -> number of images and of boxes."""


def write_coco(splits: Splits, out: Path) -> Counts:
    """Write ``annotations/instances_{split}.json``, with crowds, and the images in ``{split}/``."""
    counts = {}
    for split, data in splits.items():
        counts[split] = write_annotations(data, _copy(data.records, out / split), out, split)
    return counts


def write_annotations(data: DetectionSplit, names: Sequence[str], out: Path, split: str) -> tuple[int, int]:
    """Write ``annotations/instances_{split}.json``, and return the number of images and of annotations.

    Args:
        data: Content.
        names: File name of each image.
        out: Folder of the data set.
        split: Name of the split.
    """
    ids = {own: label + 1 for label, own in enumerate(data.category_ids)}
    annotations = [
        {**annotation, "category_id": ids[annotation["category_id"]]} for annotation in data.ground_truth["annotations"]
    ]
    content = {
        "images": [
            {"id": record.id, "file_name": name, "width": record.width, "height": record.height}
            for record, name in zip(data.records, names, strict=True)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(data.class_names, 1)],
        "annotations": annotations,
    }
    (out / "annotations").mkdir(exist_ok=True)
    write_json(out / "annotations" / f"instances_{split}.json", content)
    return len(names), len(annotations)


def write_yolo(splits: Splits, out: Path) -> Counts:
    """Write ``data.yaml``, the images in ``images/{split}/`` and a label file for each in ``labels/{split}/``.

    Paths have no ``path`` before them: without it, the YAML file's folder is taken by Ultralytics, too, which looks for
    a relative one in the working folder first.
    """
    counts = {}
    for split, data in splits.items():
        names = _copy(data.records, out / "images" / split)
        (out / "labels" / split).mkdir(parents=True)
        for record, name in zip(data.records, names, strict=True):
            write_text(out / "labels" / split / f"{Path(name).stem}.txt", _rows(record))
        counts[split] = (len(names), _count(data.records))
    class_names = list(next(iter(splits.values())).class_names)
    settings = {**{split: f"images/{split}" for split in splits}, "names": dict(enumerate(class_names))}
    write_text(out / "data.yaml", yaml.safe_dump(settings, allow_unicode=True, sort_keys=False))
    return counts


def write_voc(splits: Splits, out: Path) -> Counts:
    """Write ``Annotations/*.xml``, ``JPEGImages/`` and ``ImageSets/Main/{split}.txt``."""
    for folder in ("Annotations", "ImageSets/Main"):
        (out / folder).mkdir(parents=True)
    counts, taken = {}, set[str]()
    for split, data in splits.items():
        names = _copy(data.records, out / "JPEGImages", taken)
        for record, name in zip(data.records, names, strict=True):
            write_text(out / "Annotations" / f"{Path(name).stem}.xml", _xml(record, name, data.class_names))
        write_text(out / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{Path(name).stem}\n" for name in names))
        counts[split] = (len(names), _count(data.records))
    return counts


def distinct_names(records: Iterable[ImageRecord], taken: set[str] | None = None) -> list[str]:
    """Return a file name for each image, with the suffix of an image.

    It gets a number where another image has the same one without suffix.

    Args:
        records: Images.
        taken: Names without suffix, in lower case, that are taken; changed in place.
    """
    taken = set() if taken is None else taken
    names = []
    for record in records:
        suffix = image_suffix(record.path)
        own = record.path.name.removesuffix(suffix)
        stem, number = own, 1
        while stem.lower() in taken:
            number += 1
            stem = f"{own}_{number}"
        taken.add(stem.lower())
        names.append(f"{stem}{suffix}")
    return names


def _copy(records: Sequence[ImageRecord], folder: Path, taken: set[str] | None = None) -> list[str]:
    """Copy images into one folder, and return their names; see `distinct_names`."""
    folder.mkdir(parents=True, exist_ok=True)
    names = distinct_names(records, taken)
    for record, name in zip(records, names, strict=True):
        (folder / name).write_bytes(read_bytes(record.path))
    return names


def _count(records: Iterable[ImageRecord]) -> int:
    return sum(len(record.boxes) for record in records)


def _rows(record: ImageRecord) -> str:
    rows = []
    for label, (x1, y1, x2, y2) in zip(record.labels.tolist(), record.boxes.tolist(), strict=True):
        x, width = (x1 + x2) / 2 / record.width, (x2 - x1) / record.width
        y, height = (y1 + y2) / 2 / record.height, (y2 - y1) / record.height
        rows.append(f"{label} {x:.8f} {y:.8f} {width:.8f} {height:.8f}\n")
    return "".join(rows)


def _xml(record: ImageRecord, name: str, class_names: Sequence[str]) -> str:
    """Write corners as VOC does: counted from 1, and part of the box."""
    tree = ElementTree.Element("annotation")
    ElementTree.SubElement(tree, "filename").text = name
    size = ElementTree.SubElement(tree, "size")
    for side, value in (("width", record.width), ("height", record.height), ("depth", 3)):
        ElementTree.SubElement(size, side).text = str(value)
    for label, (x1, y1, x2, y2) in zip(record.labels.tolist(), record.boxes.tolist(), strict=True):
        element = ElementTree.SubElement(tree, "object")
        ElementTree.SubElement(element, "name").text = class_names[label]
        box = ElementTree.SubElement(element, "bndbox")
        for corner, value in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
            ElementTree.SubElement(box, corner).text = f"{value:.4f}".rstrip("0").rstrip(".")
    ElementTree.indent(tree)
    return ElementTree.tostring(tree, encoding="unicode") + "\n"
