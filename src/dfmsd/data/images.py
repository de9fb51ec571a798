"""Image file decoding."""

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
"""Formats that files may have, whatever their suffix. PIL has more, but some (EPS) start external programs."""
TRANSPOSED = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


def read_image(path: str | Path) -> Tensor:
    """Decode an image file to uint8 RGB, ``3 x H x W``, with its EXIF orientation applied.

    Only the upper 8 bits of 16-bit images and the first frame of animations are kept; transparency is dropped.

    Raises:
        DfmsdError: The file is missing, broken, suspiciously large (a decompression bomb) or not an image.
    """
    with _open_image(path) as file:
        return rgb_tensor(file, str(path))


def rgb_tensor(image: Image.Image, name: str) -> Tensor:
    """Convert a PIL image as `read_image` does.

    Args:
        image: Image of any mode with 8 or 16 bits.
        name: Name of the image, for the message.

    Raises:
        DfmsdError: The image has floating-point pixels.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise DfmsdError(f"{name}: floating-point pixels have no known range; save the image with 8 or 16 bits")
    if image.mode.startswith("I"):  # PIL's own conversion of 16-bit gray clips at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def read_size(path: str | Path) -> tuple[int, int]:
    """Read the height and width of the image that `read_image` returns, from the header alone.

    Raises:
        DfmsdError: The file is missing, suspiciously large or not an image, or its header is broken.
    """
    with _open_image(path) as file:
        exif = Image.Image.getexif(file)  # PngImageFile.getexif would decode all pixels
        transposed = exif.get(ExifTags.Base.Orientation) in TRANSPOSED
        if transposed and file.format == "TIFF":  # PIL transposes TIFF itself, when loading
            file.load()
            transposed = False
        width, height = file.size
        return (width, height) if transposed else (height, width)


def list_images(folder: Path, extra_suffixes: Collection[str] = ()) -> list[Path]:
    """List the files in a folder and its subfolders that have the suffix of an image, sorted by name.

    Args:
        folder: Folder to search.
        extra_suffixes: Suffixes to include besides those of images, such as ``.mp4``.
    """
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    suffixes.update(extra_suffixes)
    return [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in suffixes and path.is_file()]


@contextmanager
def _open_image(path: str | Path) -> Iterator[Image.Image]:
    Image.init()
    try:
        with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as file:
            yield file
    except DfmsdError:
        raise
    except Exception as error:  # decoders of broken files raise any kind of exception
        raise DfmsdError(f"{path}: cannot be decoded as an image ({error}); replace or remove it") from error
