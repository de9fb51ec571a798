"""Input images for inference, without annotations."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dfmsd.data.batching import collate
from dfmsd.data.images import list_images, refuse_url
from dfmsd.data.transforms import fit
from dfmsd.errors import DfmsdError
from dfmsd.types import Batch, Target


def find_images(
    paths: Sequence[str | Path], extra_suffixes: Collection[str] = (), exclude: Path | None = None
) -> list[Path]:
    """List files, and the images in folders and their subfolders, without duplicates.

    Args:
        paths: Folders, which are searched for images, and files, which may have any suffix.
        extra_suffixes: Suffixes to include besides those of images, such as ``.mp4``.
        exclude: Folder to skip if it lies inside one of the others.

    Raises:
        DfmsdError: There is no path, a path is a URL or does not exist, or a folder contains no image.
    """
    found: dict[Path, None] = {}
    for given in paths:
        refuse_url(given)
        path = Path(given)
        if not path.exists():
            raise DfmsdError(f"{path}: no such file or folder; give images or folders of images")
        files = [path] if path.is_file() else _search(path, extra_suffixes, exclude)
        if not files:
            raise DfmsdError(f"{path}: no image in this folder or its subfolders; give image files or another folder")
        found.update(dict.fromkeys(files))
    if not found:
        raise DfmsdError("no images: give image files or folders of images")
    return list(found)


def _search(folder: Path, extra_suffixes: Collection[str], exclude: Path | None) -> list[Path]:
    files = list_images(folder, extra_suffixes)
    if exclude is None or folder.resolve() not in exclude.resolve().parents:
        return files
    return [file for file in files if exclude.resolve() not in file.resolve().parents]


def to_batch(images: Tensor | Sequence[Tensor], image_size: int, image_id: int = 0) -> Batch:
    """Resize and pad one image, or several, as the data module does.

    Args:
        images: Each uint8, ``3 x H x W``, RGB.
        image_size: Side of the square frame in pixels.
        image_id: Id in the batch.
    """
    target = Target(boxes=torch.empty(0, 4), labels=torch.empty(0, dtype=torch.int64))
    images = [images] if isinstance(images, Tensor) else images
    return collate([fit(image, target, image_size, image_id) for image in images], image_size)
