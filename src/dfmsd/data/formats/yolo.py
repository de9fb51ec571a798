"""Data sets in the layout of YOLO: a YAML file with ``names``, and a text file of boxes for each image."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dfmsd.data.formats.layout import Content, Layout
from dfmsd.data.formats.names import check_inside
from dfmsd.data.formats.yololabels import file_names, label_file, label_places, warn_of_bare, warn_of_orphans
from dfmsd.data.formats.yoloplaces import locate, read_list, search_folders
from dfmsd.data.formats.yolorows import read_rows
from dfmsd.data.formats.yolosettings import KEYS, class_names, find_class_list, keypoint_shape, read_settings
from dfmsd.data.imagecheck import read_sizes
from dfmsd.data.images import list_images
from dfmsd.errors import DfmsdError
from dfmsd.utils.files import is_hidden

logger = logging.getLogger("dfmsd")
EXPECTED = (
    "a data set in the YOLO layout has a data.yaml with `names` and the image folders `train` and `val`; write it there"
)


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
        bases = search_folders(self.root, settings.get("path"))
        others = [found.path for place in self._others(settings) if (found := locate(place, bases)) is not None]
        for place in self.places:
            found = locate(place, bases)
            if found is None or (not found.whole and any(other.is_relative_to(found.path) for other in others)):
                raise DfmsdError(
                    f"{self.file}: {self.split}: no folder or list {place} in {bases[0]}; correct the path, or remove "
                    f"the key {self.split} if there is no such split"
                )
            if not found.whole:
                logger.warning("%s: %s: %s is not there: %s is taken", self.file, self.split, place, found.path)
            if found.path.is_dir():
                paths, folders = list_images(found.path), [found.path]
            else:
                paths, folders = read_list(found.path, bases), []
            check_inside(paths, [self.root, *bases[:1], *folders], self.file)
            yield from paths

    def _others(self, settings: Mapping[str, Any]) -> Iterator[str]:
        """Yield what the other splits list, and this one does not."""
        for key in _keys(settings).values():
            if key != self.split:
                yield from (place for place in _places(settings[key], key, self.file) if place not in self.places)


def recognize(root: Path) -> Layout | None:
    """Recognise the layout by ``data.yaml``, ``data.yml``, the only YAML file with ``names``, or a list of classes.

    Raises:
        DfmsdError: The file is not valid YAML, or several have ``names``.
    """
    file = _settings_file(root)
    if file is None:
        return None
    settings = read_settings(file)
    sources = {
        split: YoloSource(file, key, _places(settings[key], key, file), file.parent)
        for split, key in _keys(settings).items()
    }
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
    return files[0] if files else find_class_list(root)


def _keys(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the key of each split that there is."""
    found = {split: next((key for key in keys if settings.get(key)), None) for split, keys in KEYS.items()}
    return {split: key for split, key in found.items() if key is not None}


def _places(value: object, key: str, file: Path) -> tuple[str, ...]:
    places = value if isinstance(value, list) else [value]
    if not all(isinstance(place, str) and place for place in places):
        raise DfmsdError(f"{file}: {key}: expected a folder of images or a list of folders, got {value!r}; correct it")
    return tuple(places)
