"""Data sets in the layout of Pascal VOC: an XML file of boxes for each image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from dfmsd.data.formats.layout import SPLITS, Content, Entry, Layout, check_names, hidden, plain_name
from dfmsd.data.formats.names import check_inside
from dfmsd.data.formats.text import read_text
from dfmsd.data.imagecheck import read_sizes
from dfmsd.data.images import list_images
from dfmsd.errors import DfmsdError

EXPECTED = (
    "a data set in the Pascal VOC layout has Annotations/*.xml, JPEGImages/ and ImageSets/Main/train.txt and val.txt, "
    "or folders train and val with images and XML files"
)
CORNERS = ("xmin", "ymin", "xmax", "ymax")
MAX_COORDINATE = 1e9
"""In pixels."""
TURNED = 0.25
"""Share of boxes with their corners in reverse, from which on they are something else."""
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """Images and XML files in two folders, which may be the same.

    Attributes:
        images: Folder of the images.
        labels: Folder of the XML files.
        list: Text file with the name of an image, without suffix, in each line; None takes all images.
    """

    images: Path
    labels: Path
    list: Path | None = None


@dataclass(frozen=True)
class VocSource:
    """One split.

    Attributes:
        parts: Its parts: one for each year.
        root: Folder of the data set.
    """

    parts: tuple[Part, ...]
    root: Path

    @property
    def file(self) -> Path:
        """File or folder that messages about the split name."""
        return self.parts[0].list or self.parts[0].labels

    def read(self) -> Content:
        """Read and validate the split; see `Source`. Classes are numbered from 1 by name."""
        pairs = [pair for part in self.parts for pair in _pairs(part)]
        if not pairs:
            raise DfmsdError(f"{self.file}: no image; add some")
        paths = [image for image, _ in pairs]
        check_inside(paths, [self.root], self.file)
        if not any(label is not None for _, label in pairs):
            raise DfmsdError(
                f"{self.file}: none of its {len(pairs)} images has an XML file, such as "
                f"{self.parts[0].labels / paths[0].stem}.xml; add them"
            )
        images, objects = [], []
        for number, ((path, label), (height, width)) in enumerate(zip(pairs, read_sizes(paths), strict=True), 1):
            images.append({"id": number, "path": path, "height": height, "width": width})
            if label is not None:
                objects += list(_objects(label, images[-1]))
        names = sorted({name for name, _, _ in objects})
        check_names(dict(enumerate(names, 1)), self.file)
        if not names:
            raise DfmsdError(f"{self.file}: no object in its {len(images)} images, so there are no classes; add some")
        number_of = {name: number for number, name in enumerate(names, 1)}
        boxes = _to_boxes(np.array([corners for _, _, corners in objects]), self.file)
        return Content(
            images,
            [{"id": number, "name": name} for name, number in number_of.items()],
            [
                {"image_id": key, "category_id": number_of[name], "bbox": box}
                for (name, key, _), box in zip(objects, boxes.tolist(), strict=True)
            ],
            listed=False,
        )


def recognize(root: Path) -> Layout | None:
    """Recognise the layout by the folders of a year, of several, or by XML files in folders of splits; else None."""
    years = [folder for folder in _year_folders(root) if (folder / "Annotations").is_dir()]
    if years:
        return Layout("Pascal VOC", root, _listed_splits(years, root))
    sources = {}
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if plain_name(folder.name) in SPLITS and folder.is_dir() and _has_xml(folder):
            sources[folder.name] = VocSource((_part(folder),), root)
    return Layout("Pascal VOC, a folder per split,", root, sources) if sources else None


def expected(root: Path) -> str | None:
    """Say what is missing for a data set in this format, if the folder looks like one."""
    return EXPECTED if next(root.glob("*.xml"), None) or next(root.glob("*/*.xml"), None) else None


def _year_folders(root: Path) -> list[Path]:
    return [root, *sorted(root.glob("VOC[0-9]*")), *sorted(root.glob("VOCdevkit/VOC[0-9]*"))]


def _listed_splits(years: Sequence[Path], root: Path) -> dict[str, VocSource]:
    sources = {}
    for split in SPLITS:
        parts = [
            Part(year / "JPEGImages", year / "Annotations", file)
            for year in years
            if (file := year / "ImageSets" / "Main" / f"{split}.txt").is_file()
        ]
        if parts:
            sources[split] = VocSource(tuple(parts), root)
    whole = tuple(Part(_image_folder(year), year / "Annotations") for year in years)
    return sources or {"default": VocSource(whole, root)}


def _image_folder(folder: Path) -> Path:
    return next((folder / name for name in ("JPEGImages", "images", "Images") if (folder / name).is_dir()), folder)


def _part(folder: Path) -> Part:
    labels = next((folder / name for name in ("Annotations", "annotations") if (folder / name).is_dir()), folder)
    return Part(_image_folder(folder), labels)


def _has_xml(folder: Path) -> bool:
    return any(not hidden(file) for file in _part(folder).labels.glob("*.xml"))


def _pairs(part: Part) -> Iterator[tuple[Path, Path | None]]:
    """Yield each image and its XML file."""
    image_of: dict[str, Path] = {}
    for image in list_images(part.images):
        image_of.setdefault(image.stem, image)
    label_of = {file.stem: file for file in part.labels.glob("*.xml") if not hidden(file)}
    if part.list is None:
        missing = [stem for stem in label_of if stem not in image_of]
        if missing:
            raise DfmsdError(
                f"{part.labels}: {len(missing)} of {len(label_of)} XML files have no image in {part.images}, the first "
                f"is {label_of[sorted(missing)[0]].name}; add the images or remove them"
            )
        yield from ((image, label_of.get(image.stem)) for image in list_images(part.images))
        return
    stems = [line.strip() for line in read_text(part.list).splitlines() if line.strip()]
    missing = [stem for stem in stems if stem not in image_of and Path(stem).stem not in image_of]
    if missing:
        raise DfmsdError(
            f"{part.list}: {len(missing)} of {len(stems)} images are not in {part.images}, the first is {missing[0]}; "
            "add them or remove their lines"
        )
    for stem in stems:
        image = image_of.get(stem) or image_of[Path(stem).stem]
        yield image, label_of.get(image.stem)


def _objects(file: Path, image: Entry) -> Iterator[tuple[str, int, list[float]]]:
    """Yield name, image id and the numbers of each object's ``bndbox``."""
    try:
        tree = ElementTree.fromstring(file.read_bytes())
    except (ElementTree.ParseError, ValueError, LookupError, OSError) as error:
        raise DfmsdError(f"{file}: not valid XML ({error}); correct or remove it") from error
    _check_size(tree, image, file)
    for number, element in enumerate(tree.findall("object"), 1):
        name = (element.findtext("name") or "").strip()
        if not name:
            raise DfmsdError(f"{file}: object {number} has no name; add it")
        corners = [_number(element.find(f"bndbox/{corner}"), number, corner, file) for corner in CORNERS]
        yield name, image["id"], corners


def _to_boxes(corners: Array, file: Path) -> Array:
    """Convert corners, pixels that count from 1 and belong to the box, to ``[x, y, width, height]``."""
    if (corners <= 1).all() and (corners % 1 != 0).any():
        raise DfmsdError(
            f"{file}: all {len(corners)} boxes lie within 0..1, so they are probably fractions of the image; multiply "
            "them by its width and height"
        )
    low, high = corners[:, :2], corners[:, 2:]
    turned = high <= low - 1  # a box of less than a pixel has its xmax just below its xmin
    count = turned.any(axis=1).sum()
    if count > TURNED * len(corners):
        raise DfmsdError(
            f"{file}: {count} of {len(corners)} boxes have xmax below xmin or ymax below ymin, so these are "
            "probably width and height; write the corners"
        )
    low, high = np.where(turned, high, low) - 1, np.where(turned, low, high)
    return np.concatenate([low, high - low], axis=1)


def _check_size(tree: Any, image: Entry, file: Path) -> None:
    texts = [(tree.findtext(f"size/{side}") or "0").strip() for side in ("width", "height")]
    sides = tuple(int(float(text)) if text.replace(".", "", 1).isdecimal() else 0 for text in texts)
    if all(sides) and sides != (image["width"], image["height"]):
        raise DfmsdError(
            f"{file}: its size is {sides[0]} x {sides[1]}, but {image['path']} has {image['width']} x "
            f"{image['height']} pixels (EXIF orientation applied); correct the size and the boxes"
        )


def _number(element: Any, number: int, corner: str, file: Path) -> float:
    text = "" if element is None else (element.text or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= MAX_COORDINATE:
        raise DfmsdError(f"{file}: object {number}: {corner} is {text!r}, no finite number of pixels; correct it")
    return value
