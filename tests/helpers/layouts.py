"""A data set, written in every layout that dfmsd reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from PIL import Image

from dfmsd.data import open_split

Boxes = list[tuple[str, tuple[float, float, float, float]]]


class Picture(NamedTuple):
    """Sides in pixels, and class and box, xyxy in pixels, of each object."""

    width: int
    height: int
    boxes: Boxes


Pictures = dict[str, Picture]
Splits = dict[str, Pictures]
SPLITS: Splits = {
    "train": {
        "a": Picture(64, 48, [("ray", (8, 16, 24, 48)), ("eel", (0, 0, 32.5, 32))]),
        "b (1)": Picture(64, 48, []),
        "c.d": Picture(30, 40, [("ray", (1, 2, 29, 39.25))]),
    },
    "val": {"e": Picture(64, 48, [("eel", (16, 8, 48, 40)), ("ray", (0, 0, 8, 8))])},
}
"""Split -> name of an image, without suffix -> the image."""


def classes(splits: Splits) -> list[str]:
    """The classes, sorted by name."""
    return sorted({name for pictures in splits.values() for one in pictures.values() for name, _ in one.boxes})


def read(root: Path | str, split: str) -> Pictures:
    """Read a split with dfmsd."""
    data = open_split(root, split)
    return {
        record.path.stem: Picture(
            record.width,
            record.height,
            [
                (data.class_names[label], tuple(box))  # type: ignore[misc]
                for label, box in zip(record.labels.tolist(), record.boxes.tolist(), strict=True)
            ],
        )
        for record in data.records
    }


def close(found: Pictures, wanted: Pictures, pixels: float = 0.01) -> bool:
    """Whether images, classes and boxes are the same, in any order."""
    return found.keys() == wanted.keys() and all(
        found[name][:2] == wanted[name][:2] and _close(found[name].boxes, wanted[name].boxes, pixels) for name in wanted
    )


def _close(found: Boxes, wanted: Boxes, pixels: float) -> bool:
    def key(pair: tuple[str, Iterable[float]]) -> tuple[Any, ...]:
        return (pair[0], *(round(side, 2) for side in pair[1]))

    pairs = zip(sorted(found, key=key), sorted(wanted, key=key), strict=False)
    return len(found) == len(wanted) and all(
        a == b and max(abs(x - y) for x, y in zip(box, other, strict=True)) <= pixels for (a, box), (b, other) in pairs
    )


def draw(folder: Path, pictures: Pictures, suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, one in pictures.items():
        Image.new("RGB", (one.width, one.height), (10, 20, 30)).save(folder / f"{name}{suffix}")


def to_coco(splits: Splits, split: str, prefix: str = "") -> dict[str, Any]:
    pictures, names = splits[split], classes(splits)
    return {
        "images": [
            {"id": number, "file_name": f"{prefix}{name}.png", "width": one.width, "height": one.height}
            for number, (name, one) in enumerate(pictures.items(), 7)
        ],
        "categories": [{"id": 3 * number, "name": name} for number, name in enumerate(names)],
        "annotations": [
            {"image_id": image, "category_id": 3 * names.index(name), "bbox": [x1, y1, x2 - x1, y2 - y1], "id": 10 * n}
            for n, (image, name, (x1, y1, x2, y2)) in enumerate(
                (image, *pair) for image, one in enumerate(pictures.values(), 7) for pair in one.boxes
            )
        ],
    }


def write(file: Path, content: str | dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def coco(root: Path, splits: Splits = SPLITS) -> Path:
    for split, pictures in splits.items():
        draw(root / split, pictures)
        write(root / "annotations" / f"instances_{split}.json", to_coco(splits, split))
    return root


def coco_2017(root: Path, splits: Splits = SPLITS) -> Path:
    for split, pictures in splits.items():
        draw(root / f"{split}2017", pictures)
        write(root / "annotations" / f"instances_{split}2017.json", to_coco(splits, split))
        write(root / "annotations" / f"captions_{split}2017.json", {})
    return root


def cvat(root: Path, splits: Splits = SPLITS) -> Path:
    for split, pictures in splits.items():
        draw(root / "images" / split, pictures)
        write(root / "annotations" / f"instances_{split}.json", to_coco(splits, split))
    return root


def roboflow_coco(root: Path, splits: Splits = SPLITS) -> Path:
    for split, pictures in splits.items():
        folder = root / {"val": "valid"}.get(split, split)
        draw(folder, pictures)
        write(folder / "_annotations.coco.json", to_coco(splits, split))
    return root


def yolo_rows(one: Picture, names: list[str]) -> str:
    rows = (
        (
            names.index(name),
            (x1 + x2) / 2 / one.width,
            (y1 + y2) / 2 / one.height,
            (x2 - x1) / one.width,
            (y2 - y1) / one.height,
        )
        for name, (x1, y1, x2, y2) in one.boxes
    )
    return "\n".join(" ".join(map(repr, row)) for row in rows)


def _yolo(root: Path, splits: Splits, folders: Callable[[str], tuple[str, str]]) -> None:
    for split, pictures in splits.items():
        images, labels = folders(split)
        draw(root / images, pictures)
        for name, one in pictures.items():
            if one.boxes:
                write(root / labels / f"{name}.txt", yolo_rows(one, classes(splits)))


def yolo(root: Path, splits: Splits = SPLITS) -> Path:
    """With ``path`` of another machine, and ``names`` as a mapping."""
    _yolo(root, splits, lambda split: (f"images/{split}", f"labels/{split}"))
    names = "".join(f"  {number}: {json.dumps(name)}\n" for number, name in enumerate(classes(splits)))
    places = "".join(f"{split}: images/{split}\n" for split in splits)
    write(root / "cells.yaml", f"path: /content/datasets/cells\n{places}names:\n{names}")
    return root


def roboflow_yolo(root: Path, splits: Splits = SPLITS) -> Path:
    _yolo(root, splits, lambda split: (f"{split}/images", f"{split}/labels"))
    places = "".join(f"{split}: ../{split}/images\n" for split in splits)
    write(root / "data.yaml", f"{places}nc: {len(classes(splits))}\nnames: {json.dumps(classes(splits))}\n")
    return root


def yolo_lists(root: Path, splits: Splits = SPLITS) -> Path:
    """Text files of absolute paths of another machine; images and labels side by side, in subfolders."""
    _yolo(root, splits, lambda split: (f"obj/{split}/1", f"obj/{split}/1"))
    for split, pictures in splits.items():
        write(root / f"{split}.txt", "".join(f"/home/me/cells/obj/{split}/1/{name}.png\n" for name in pictures))
    places = "".join(f"{split}: [{split}.txt]\n" for split in splits)
    write(root / "data.yml", f"{places}names: {json.dumps(classes(splits))}\n")
    return root


def cvat_yolo(root: Path, splits: Splits = SPLITS) -> Path:
    """Names in a file of their own, images and labels side by side, and lists of paths that are not quite there."""
    keys = {"val": "valid"}
    _yolo(root, splits, lambda split: (f"obj_{split}_data", f"obj_{split}_data"))
    for split, pictures in splits.items():
        paths = "".join(f"data/obj_{split}_data/{name}.png\n" for name in pictures)
        write(root / f"{keys.get(split, split)}.txt", paths)
    lists = "".join(f"{keys.get(split, split)} = data/{keys.get(split, split)}.txt\n" for split in splits)
    write(root / "obj.data", f"classes = {len(classes(splits))}\n{lists}names = data/obj.names\nbackup = backup/\n")
    write(root / "obj.names", "".join(f"{name}\n" for name in classes(splits)))
    return root


def label_studio_yolo(root: Path, splits: Splits = SPLITS) -> Path:
    """As Label Studio exports one split, with a folder for each."""
    _yolo(root, splits, lambda split: (f"images/{split}", f"labels/{split}"))
    write(root / "classes.txt", "\n".join(classes(splits)))
    write(root / "notes.json", {})
    return root


def xml(one: Picture) -> str:
    """Write an XML file; corners are counted from 1 and inclusive."""
    objects = "".join(
        f"<object><name> {escape(name)} </name><difficult>1</difficult><bndbox><xmin>{x1 + 1}</xmin>"
        f"<ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, (x1, y1, x2, y2) in one.boxes
    )
    size = f"<size><width>{one.width}</width><height>{one.height}</height><depth>3</depth></size>"
    return f"<annotation>{size}{objects}</annotation>"


def voc(root: Path, splits: Splits = SPLITS, year: str = "VOCdevkit/VOC2012") -> Path:
    for split, pictures in splits.items():
        draw(root / year / "JPEGImages", pictures)
        for name, one in pictures.items():
            write(root / year / "Annotations" / f"{name}.xml", xml(one))
        write(root / year / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{name}\n" for name in pictures))
    return root


def roboflow_voc(root: Path, splits: Splits = SPLITS) -> Path:
    for split, pictures in splits.items():
        folder = root / {"val": "valid"}.get(split, split)
        draw(folder, pictures)
        for name, one in pictures.items():
            write(folder / f"{name}.xml", xml(one))
    return root


LAYOUTS: dict[str, Callable[..., Path]] = {
    writer.__name__: writer
    for writer in (
        *(coco, coco_2017, cvat, roboflow_coco),
        *(yolo, roboflow_yolo, yolo_lists, cvat_yolo, label_studio_yolo),
        *(voc, roboflow_voc),
    )
}
