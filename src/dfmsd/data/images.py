"""Image files: decoded to RGB, or refused by name."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from dfmsd.errors import DfmsdError

FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""What a file may hold, whatever its name ends in. PIL knows more, some of which start other programs (EPS)."""
TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


def read_image(path: str | Path) -> Tensor:
    """Decode an image file to uint8 RGB ``3 x H x W``, turned as its EXIF orientation says.

    Of 16-bit pixels the upper 8 bits are kept, of several frames the first, of transparency nothing.

    Raises:
        DfmsdError: The file is missing, broken, too large to be an honest image, or none.
    """
    with _opened(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode == "F":
            raise DfmsdError(f"{path}: its pixels are floating-point numbers of no known range; save 8 or 16 bits")
        if image.mode.startswith("I"):  # 16-bit grey: PIL's own conversion would clip it at 255
            image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def read_size(path: str | Path) -> tuple[int, int]:
    """Give the height and width that `read_image` would give, from the file's header alone.

    Raises:
        DfmsdError: The file is missing, its header is broken, or it is too large or no image.
    """
    with _opened(path) as file:
        exif = Image.Image.getexif(file)  # PNG's own one decodes all pixels in search of it
        turned = exif.get(ExifTags.Base.Orientation) in TURNED
        if turned and file.format == "TIFF":  # which PIL turns itself, and tells of the sides before or after
            file.load()
            turned = False
        width, height = file.size
        return (width, height) if turned else (height, width)


def images_in(folder: Path, further: Collection[str] = ()) -> list[Path]:
    """List the files in a folder and its subfolders that are images by their endings, in the order of their names.

    Args:
        folder: where to look.
        further: endings beside those of images, such as ``.mp4``.
    """
    endings = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}.union(further)
    return [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in endings and path.is_file()]


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    Image.init()
    try:
        with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as file:
            yield file
    except DfmsdError:
        raise
    except Exception as error:  # a broken file breaks its decoder in any way
        raise DfmsdError(f"{path}: cannot be decoded as an image ({error}); replace or remove it") from error
