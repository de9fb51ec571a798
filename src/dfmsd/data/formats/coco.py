"""Data sets with COCO annotation files: COCO's own layout, CVAT's, Roboflow's and Label Studio's."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from dfmsd.data.formats.annotations import read_annotations
from dfmsd.data.formats.layout import SPLITS, Content, Layout, plain_name
from dfmsd.errors import DfmsdError
from dfmsd.utils.files import is_hidden

EXPECTED = (
    "a data set in the COCO layout has annotations/instances_train.json and the images in train/; files with other "
    "names can be given with data.train and data.val"
)
FOLDERS = ("annotations", "Annotations", ".")
"""Folders that may hold the annotation files of all splits, the likeliest first."""
LARGE = 2**24
"""Bytes from which a file is indexed."""
ROBOFLOW = "_annotations.coco.json"
LABEL_STUDIO = "result.json"


@dataclass(frozen=True)
class CocoSource:
    """One annotation file and its images.

    Attributes:
        file: JSON file.
        folders: Folders that the file names may be relative to, the likeliest first.
        root: Folder of the data set, which holds all images.
    """

    file: Path
    folders: tuple[Path, ...]
    root: Path

    def fingerprint(self) -> str | None:
        """Hash a large file and the folders; None for a small one."""
        try:
            if self.file.stat().st_size < LARGE:
                return None
            digest = hashlib.sha256(os.fsencode(f"{self.root} {self.folders}"))
            with self.file.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
        except OSError:  # `read` says why
            return None
        return digest.hexdigest()

    def read(self) -> Content:
        """Read and validate the split; see `Source`."""
        return read_annotations(self.file, self.folders, self.root)


def recognize(root: Path) -> Layout | None:
    """Recognise the layout from the names of the annotation files; None if there is none."""
    for name, find in (("COCO", _plain), ("Roboflow COCO", _roboflow), ("Label Studio COCO", _label_studio)):
        sources = find(root)
        if sources:
            return Layout("CVAT COCO" if list(sources) == ["default"] and name == "COCO" else name, root, sources)
    return None


def expected(root: Path) -> str | None:
    """Say what is missing for a data set in this format, if the folder looks like one."""
    return EXPECTED if (root / "annotations").is_dir() or next(root.glob("*.json"), None) else None


def _plain(root: Path) -> dict[str, CocoSource]:
    """Find ``annotations/instances_train2017.json`` and the like, also in the folder itself."""
    sources: dict[str, CocoSource] = {}
    for file in next((files for folder in FOLDERS if (files := sorted((root / folder).glob("*.json")))), []):
        split = _split_of(file)
        if split in sources:
            raise DfmsdError(
                f"data.root: {file.parent} has {sources[split].file.name} and {file.name} for the split {split}; keep "
                "one of them there, or name files with data.train and data.val"
            )
        if split is not None:
            sources[split] = CocoSource(file, _image_folders(root, split), root)
    return sources


def _split_of(file: Path) -> str | None:
    """Return the split of an annotation file, or None if it has no boxes, as ``captions_train2017.json``."""
    match = re.fullmatch(r"(instances_)?(.+)", file.stem)
    if match is None or is_hidden(file.name):
        return None
    prefix, split = match.groups()
    return split if prefix or plain_name(split) in (*SPLITS, "default") else None


def _image_folders(root: Path, split: str) -> tuple[Path, ...]:
    names = dict.fromkeys((split, plain_name(split), re.sub(r"[-_]?\d{4}$", "", split)))
    places = [place for name in names for place in (root / name, root / "images" / name)]
    return (*places, root / "images", root)


def _roboflow(root: Path) -> dict[str, CocoSource]:
    """Find ``train/_annotations.coco.json`` and the like, or one split that is the folder itself."""
    files = [file for file in sorted(root.glob(f"*/{ROBOFLOW}")) if not is_hidden(file.parent.name)]
    if not files and (root / ROBOFLOW).is_file():
        return {"default": CocoSource(root / ROBOFLOW, (root,), root)}
    return {file.parent.name: CocoSource(file, (file.parent,), root) for file in files}


def _label_studio(root: Path) -> dict[str, CocoSource]:
    file = root / LABEL_STUDIO
    found = file.is_file() and (root / "images").is_dir()
    return {"default": CocoSource(file, (root, root / "images"), root)} if found else {}
