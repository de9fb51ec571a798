"""Data sets in the layout of Pascal VOC: an XML file of boxes for each image."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dfmsd.data.formats.layout import SPLITS, Content, Layout, check_names, plain_name
from dfmsd.data.formats.names import check_inside
from dfmsd.data.formats.text import read_text
from dfmsd.data.formats.vocxml import read_objects, to_boxes
from dfmsd.data.imagecheck import read_sizes
from dfmsd.data.images import image_suffixes, list_images
from dfmsd.data.truth import GroundTruth
from dfmsd.errors import DfmsdError
from dfmsd.utils.files import is_hidden

logger = logging.getLogger("dfmsd")
EXPECTED = (
    "a data set in the Pascal VOC layout has Annotations/*.xml, JPEGImages/ and ImageSets/Main/train.txt and val.txt, "
    "or folders train and val with images and XML files"
)
LABEL_FOLDERS = ("Annotations", "annotations")
IMAGE_FOLDERS = ("JPEGImages", "images", "Images")
LISTS = ("ImageSets/Main", "ImageSets", ".")
"""Folders that may hold the lists of splits, the likeliest first."""


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

    def fingerprint(self) -> None:
        """Return nothing: many small files take as long to check as to read."""

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
        bare = [image for image, label in pairs if label is None]
        if bare:
            logger.warning(
                "%s: %d of %d images have no XML file and count as images without objects, the first is %s",
                *(self.file, len(bare), len(pairs), bare[0].name),
            )
        images, objects = [], []
        for number, ((path, label), (height, width)) in enumerate(zip(pairs, read_sizes(paths), strict=True), 1):
            images.append({"id": number, "path": path, "height": height, "width": width})
            if label is not None:
                objects += list(read_objects(label, images[-1]))
        names = sorted({name for name, _, _ in objects})
        check_names(dict(enumerate(names, 1)), self.file)
        if not names:
            raise DfmsdError(f"{self.file}: no object in its {len(images)} images, so there are no classes; add some")
        label_of = {name: label for label, name in enumerate(names)}
        boxes = to_boxes(np.array([corners for _, _, corners in objects]), self.file)
        return Content(
            images,
            [{"id": number, "name": name} for number, name in enumerate(names, 1)],
            GroundTruth.of_boxes(
                [number for _, number, _ in objects], [label_of[name] for name, _, _ in objects], boxes
            ),
            listed=False,
        )


def recognize(root: Path) -> Layout | None:
    """Recognise the layout by the folders of a year, of several, or by XML files in folders of splits; else None."""
    years = [folder for folder in _year_folders(root) if _is_year(folder)]
    if years:
        return Layout("Pascal VOC", root, _listed_splits(years, root))
    sources = {}
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if plain_name(folder.name) in SPLITS and folder.is_dir() and _has_xml(folder):
            sources[folder.name] = VocSource((_part(folder),), root)
    if sources:
        return Layout("Pascal VOC, a folder per split,", root, sources)
    beside = any(map(_has_image, _xml_files(root)))
    return Layout("Pascal VOC, in one folder,", root, {"default": VocSource((_part(root),), root)}) if beside else None


def expected(root: Path) -> str | None:
    """Say what is missing for a data set in this format, if the folder looks like one."""
    return EXPECTED if next(root.glob("*.xml"), None) or next(root.glob("*/*.xml"), None) else None


def _year_folders(root: Path) -> list[Path]:
    return [root, *sorted(root.glob("VOC[0-9]*")), *sorted(root.glob("VOCdevkit/VOC[0-9]*"))]


def _is_year(folder: Path) -> bool:
    labels = _label_folder(folder)
    return labels != folder and ((folder / "JPEGImages").is_dir() or _has_xml(folder))


def _listed_splits(years: Sequence[Path], root: Path) -> dict[str, VocSource]:
    parts: dict[str, list[Part]] = {}
    for year in years:
        for file in _lists(year):
            parts.setdefault(file.stem, []).append(replace(_part(year), list=file))
    names = sorted(parts, key=lambda name: SPLITS.index(plain_name(name)))
    sources = {name: VocSource(tuple(parts[name]), root) for name in names}
    return sources or {"default": VocSource(tuple(_part(year) for year in years), root)}


def _lists(year: Path) -> list[Path]:
    """Return the lists of the splits, such as ``train.txt``, but not those of classes, such as ``cat_train.txt``."""
    for folder in LISTS:
        files = [file for file in sorted((year / folder).glob("*.txt")) if plain_name(file.stem) in SPLITS]
        if files:
            return files
    return []


def _part(folder: Path) -> Part:
    return Part(_folder(folder, IMAGE_FOLDERS), _label_folder(folder))


def _label_folder(folder: Path) -> Path:
    return _folder(folder, LABEL_FOLDERS)


def _folder(folder: Path, names: Sequence[str]) -> Path:
    return next((folder / name for name in names if (folder / name).is_dir()), folder)


def _has_xml(folder: Path) -> bool:
    return any(_xml_files(_label_folder(folder)))


def _xml_files(folder: Path) -> Iterator[Path]:
    """Yield the XML files in a folder; their suffix may have capitals."""
    files = folder.iterdir() if folder.is_dir() else ()
    return (file for file in files if file.suffix.lower() == ".xml" and not is_hidden(file.name))


def _has_image(label: Path) -> bool:
    return any(label.with_suffix(suffix).is_file() for suffix in image_suffixes())


def _pairs(part: Part) -> Iterator[tuple[Path, Path | None]]:
    """Yield each image and its XML file."""
    image_of: dict[str, Path] = {}
    for image in list_images(part.images):
        image_of.setdefault(image.stem, image)
    label_of = {file.stem: file for file in _xml_files(part.labels)}
    if part.list is None:
        missing = [stem for stem in label_of if stem not in image_of]
        if missing:
            raise DfmsdError(
                f"{part.labels}: {len(missing)} of {len(label_of)} XML files have no image in {part.images}, the first "
                f"is {label_of[sorted(missing)[0]].name}; add the images or remove them"
            )
        yield from ((image, label_of.get(image.stem)) for image in list_images(part.images))
        return
    stems = [_stem(line.strip(), image_of) for line in read_text(part.list).splitlines() if line.strip()]
    missing = [stem for stem in stems if stem not in image_of]
    if missing:
        raise DfmsdError(
            f"{part.list}: {len(missing)} of {len(stems)} images are not in {part.images}, the first is {missing[0]}; "
            "add them or remove their lines"
        )
    yield from ((image_of[stem], label_of.get(stem)) for stem in stems)


def _stem(line: str, image_of: Collection[str]) -> str:
    """Return the name in a line of a list: as it is written, without folder and suffix, or without a flag after it."""
    flagless = re.sub(r"\s+-?[01]$", "", line)
    return next((name for name in (line, Path(line).stem, flagless) if name in image_of), line)
