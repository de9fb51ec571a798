"""Images that nobody annotated, one by one, at the size that a detector was trained at."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dfmsd.data.images import images_in
from dfmsd.data.transforms import STRIDE, collate, fit
from dfmsd.errors import DfmsdError
from dfmsd.types import Batch, Target


def pick_files(paths: Sequence[str | Path], further: Collection[str] = (), leave_out: Path | None = None) -> list[Path]:
    """List files, and those in folders and their subfolders that are images by their endings, each once.

    Args:
        paths: files, whatever they end in, and folders.
        further: endings beside those of images, such as ``.mp4``.
        leave_out: passed over where it lies in one of the folders.

    Raises:
        DfmsdError: one of them does not exist, or there is no image in a folder.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise DfmsdError(f"{path}: no such file or folder; give images or folders of them")
        own = [path] if path.is_file() else _inside(path, further, leave_out)
        if not own:
            raise DfmsdError(
                f"{path}: no image in this folder and those in it; give a folder with some, or image files"
            )
        found.update(dict.fromkeys(own))
    return list(found)


def _inside(folder: Path, further: Collection[str], leave_out: Path | None) -> list[Path]:
    files = images_in(folder, further)
    if leave_out is None or folder.resolve() not in leave_out.resolve().parents:
        return files
    return [file for file in files if leave_out.resolve() not in file.resolve().parents]


def check_side(side: int) -> None:
    """Refuse a side of a frame that pyramids do not take.

    Args:
        side: in pixels.

    Raises:
        DfmsdError: it is no multiple of the coarsest stride of common backbones.
    """
    if side < STRIDE or side % STRIDE:
        raise DfmsdError(f"--image-size: expected a multiple of {STRIDE}, got {side}")


def as_batch(image: Tensor, image_size: int, image_id: int = 0) -> Batch:
    """Resize and pad an image as the data module does.

    Args:
        image: uint8, ``3 x H x W``, RGB.
        image_size: side of the square frame in pixels.
        image_id: carried along.
    """
    nothing = Target(boxes=torch.empty(0, 4), labels=torch.empty(0, dtype=torch.int64))
    return collate([fit(image, nothing, image_size, image_id)], image_size)
