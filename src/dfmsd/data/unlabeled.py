"""Images without annotations for distillation."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

import torch

from dfmsd.data.images import list_images, read_size
from dfmsd.data.records import ImageRecord
from dfmsd.errors import DfmsdError

logger = logging.getLogger("dfmsd")


def unlabeled_records(folder: str | Path, exclude: Collection[Path] = ()) -> list[ImageRecord]:
    """List the images in a folder and its subfolders; only their headers are read.

    Args:
        folder: Folder of images; other files are ignored.
        exclude: Images to skip: those of the data set itself.

    Returns:
        Records without boxes, sorted by path; ids are -1, -2, ...

    Raises:
        DfmsdError: The folder does not exist, an image is broken, or no image is left.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise DfmsdError(f"data.unlabeled: no folder {folder.absolute()}; give a folder of images")
    found = list_images(folder)
    excluded = {path.resolve() for path in exclude}
    paths = [path for path in found if path.resolve() not in excluded]
    if not paths:
        raise DfmsdError(
            f"data.unlabeled: {folder} holds {len(found)} images, and none besides those of data.root; give a folder "
            "with others, or leave data.unlabeled out"
        )
    if len(paths) < len(found):
        logger.warning("%s: skipping %d images that belong to data.root", folder, len(found) - len(paths))
    return [_to_record(-number, path) for number, path in enumerate(paths, 1)]


def _to_record(image_id: int, path: Path) -> ImageRecord:
    height, width = read_size(path)
    boxes, labels = torch.empty(0, 4), torch.empty(0, dtype=torch.int64)
    return ImageRecord(image_id, path, height, width, boxes, labels, labeled=False)
