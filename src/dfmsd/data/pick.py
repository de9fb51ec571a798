"""Images that nobody annotated, one by one, at the size that a detector was trained at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dfmsd.data.images import images_in
from dfmsd.data.transforms import collate, fit
from dfmsd.errors import DfmsdError
from dfmsd.types import Batch, Target


def pick_files(paths: Sequence[str | Path], leave_out: Path | None = None) -> list[Path]:
    """List files, and those in folders and their subfolders that are images by their endings, each once.

    Args:
        paths: files, whatever they end in, and folders.
        leave_out: a folder inside the others that is passed over.

    Raises:
        DfmsdError: one of them does not exist, or there is no image in a folder.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise DfmsdError(f"{path}: no such file or folder; give images or folders of them")
        files = [path] if path.is_file() else images_in(path)
        own = [file for file in files if leave_out is None or leave_out.resolve() not in file.resolve().parents]
        if not own:
            raise DfmsdError(
                f"{path}: no image in this folder and those in it; give a folder with some, or image files"
            )
        found.update(dict.fromkeys(own))
    return list(found)


def as_batch(image: Tensor, image_size: int, image_id: int = 0) -> Batch:
    """Resize and pad an image as the data module does.

    Args:
        image: uint8, ``3 x H x W``, RGB.
        image_size: side of the square frame in pixels.
        image_id: carried along.
    """
    nothing = Target(boxes=torch.empty(0, 4), labels=torch.empty(0, dtype=torch.int64))
    return collate([fit(image, nothing, image_size, image_id)], image_size)
