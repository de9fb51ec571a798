"""Data sets in the layout of YOLO: a YAML file with ``names``, and a text file of boxes for each image."""

from __future__ import annotations

import logging
import os.path
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from dfmsd.data.formats.layout import Content, Layout
from dfmsd.data.formats.names import check_inside
from dfmsd.data.formats.text import read_text
from dfmsd.data.formats.yololabels import file_names, label_file, label_places, warn_of_bare, warn_of_orphans
from dfmsd.data.formats.yolorows import read_rows
from dfmsd.data.formats.yolosettings import class_names, keypoint_shape, read_settings
from dfmsd.data.imagecheck import read_sizes
from dfmsd.data.images import list_images
from dfmsd.errors import DfmsdError
from dfmsd.utils.files import is_hidden

logger = logging.getLogger("dfmsd")
EXPECTED = (
    "a data set in the YOLO layout has a data.yaml with `names` and the image folders `train` and `val`; write it there"
)
KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""Split -> keys that may name its images."""


@dataclass(frozen=True)
class YoloSource:
    """The images of one split and the classes.

    Attributes:
        file: YAML file.
        split: Key of the split there.
        places: What the key lists: folders, and text files of paths.
        root: Folder of the data set.
    """

    file: Path
    split: str
    places: tuple[str, ...]
    root: Path

    def fingerprint(self) -> None:
        """Return nothing: many small files take as long to check as to read."""

    def read(self) -> Content:
        """Read and validate the split; see `Source`."""
        settings = read_settings(self.file)
        names = class_names(settings, self.file)
        paths = list(dict.fromkeys(self._images(settings)))
        if not paths:
            raise DfmsdError(f"{self.file}: {self.split}: no image in {', '.join(self.places)}; correct the path")
        names_in = cache(file_names)
        labels = [label_file(path, names_in) for path in paths]
        if not any(labels):
            raise DfmsdError(
                f"{self.file}: {self.split}: none of its {len(paths)} images has a label file, such as "
                f"{label_places(paths[0])[0]}; add them"
            )
        warn_of_bare(paths, labels, f"{self.file}: {self.split}")
        warn_of_orphans(paths, names_in, f"{self.file}: {self.split}")
        sizes = read_sizes(paths)
        images = [
            {"id": number, "path": path, "height": height, "width": width}
            for number, (path, (height, width)) in enumerate(zip(paths, sizes, strict=True), 1)
        ]
        categories = [{"id": number, "name": name} for number, name in sorted(names.items())]
        objects = read_rows(images, labels, sorted(names), self.file, keypoint_shape(settings, self.file))
        return Content(images, categories, objects)

    def _images(self, settings: Mapping[str, Any]) -> Iterator[Path]:
        bases = _bases(self.root, settings.get("path"))
        for place in self.places:
            found = _locate(place, bases)
            if found is None:
                raise DfmsdError(
                    f"{self.file}: {self.split}: no folder or list {place} in {bases[0]}; correct the path, or remove "
                    f"the key {self.split} if there is no such split"
                )
            if not found.whole:
                logger.warning("%s: %s: %s is not there: %s is taken", self.file, self.split, place, found.path)
            if found.path.is_dir():
                paths, folders = list_images(found.path), [found.path]
            else:
                paths, folders = _listed(found.path, bases), []
            check_inside(paths, [self.root, *bases[:1], *folders], self.file)
            yield from paths


def recognize(root: Path) -> Layout | None:
    """Recognise the layout by ``data.yaml``, ``data.yml`` or the only YAML file with ``names``; None if there is none.

    Raises:
        DfmsdError: The file is not valid YAML, or several have ``names``.
    """
    file = _settings_file(root)
    if file is None:
        return None
    settings = read_settings(file)
    sources = {}
    for split, keys in KEYS.items():
        key = next((key for key in keys if settings.get(key)), None)
        if key is not None:
            sources[split] = YoloSource(file, key, _places(settings[key], key, file), file.parent)
    if not sources:
        raise DfmsdError(f"{file}: it has neither train nor val; give the folders of their images")
    return Layout("YOLO", file.parent, sources)


def expected(root: Path) -> str | None:
    """Say what is missing for a data set in this format, if the folder looks like one."""
    found = any((root / name).is_file() for name in ("classes.txt", "obj.names"))
    return EXPECTED if found or any(root.glob("labels*")) or any(root.glob("*/labels*")) else None


def _settings_file(root: Path) -> Path | None:
    if root.is_file():
        return root if root.suffix in (".yaml", ".yml") else None
    for name in ("data.yaml", "data.yml"):
        if (root / name).is_file():
            return root / name
    files = [file for file in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]) if not is_hidden(file.name)]
    files = [file for file in files if file.is_file() and b"names:" in file.read_bytes()]
    if len(files) > 1:
        shown = ", ".join(file.name for file in files)
        raise DfmsdError(f"data.root: {root} has several YAML files with names, {shown}; give one of them")
    return files[0] if files else None


def _places(value: object, key: str, file: Path) -> tuple[str, ...]:
    places = value if isinstance(value, list) else [value]
    if not all(isinstance(place, str) and place for place in places):
        raise DfmsdError(f"{file}: {key}: expected a folder of images or a list of folders, got {value!r}; correct it")
    return tuple(places)


def _bases(root: Path, path: object) -> list[Path]:
    """Return the folders that paths may be relative to: ``path``, and the file's own."""
    given = [root / path] if isinstance(path, str) and path else []
    return [*given, root]


class Place(NamedTuple):
    """A folder or file that was found."""

    path: Path
    whole: bool
    """Whether by its whole path, not by the last parts of it."""


def _locate(place: str, bases: list[Path]) -> Place | None:
    """Find a folder or file, also if it was written on another machine: by its last parts.

    ``../x`` is looked for in a folder itself before it is looked for beside it: Roboflow writes it so, and beside it
    may be another data set.
    """
    parts = PurePosixPath(place.replace("\\", "/")).parts
    inner = [base / "-" for base in bases] if parts[:1] == ("..",) and parts[1:2] != ("..",) else []
    for start in range(max(1, len(parts))):
        for base in [*inner, *bases] if start == 0 else bases:
            path = os.path.normpath(base.joinpath(*parts[start:]))
            if _exists(path):
                return Place(Path(path), start == 0)
    return None


def _exists(path: str | Path) -> bool:
    try:
        return os.path.exists(path)
    except ValueError:  # a null character
        return False


def _listed(file: Path, bases: list[Path]) -> list[Path]:
    """Return the images in a text file, one path a line."""
    places = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if line.strip():
            place = _locate(line.strip(), [file.parent, *bases])
            if place is None or not place.path.is_file():
                raise DfmsdError(f"{file}: line {number}: no image {line.strip()}; add it or remove the line")
            places.append(place)
    moved = [place.path for place in places if not place.whole]
    if moved:
        logger.warning(
            "%s: %d of %d images are found by the last parts of their path, such as %s",
            *(file, len(moved), len(places), moved[0]),
        )
    return [place.path for place in places]
