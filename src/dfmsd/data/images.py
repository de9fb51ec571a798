"""Image file decoding."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from dfmsd.data.shards import find_member, image_source
from dfmsd.errors import DfmsdError
from dfmsd.utils.files import is_hidden

logger = logging.getLogger("dfmsd")

FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that files may have, whatever their suffix. PIL has more, but some (EPS) start external programs."""
USUAL_SUFFIXES = {"JPEG": ".jpg", "JPEG2000": ".jp2", "MPO": ".jpg"}
"""Format -> suffix, where that is not the name of the format."""
GRAY_BITS = (8, 12, 16)
"""Depths of gray values that are stored in 16 bits: an image has the smallest that holds its values."""
_first_of_depth: dict[int, str] = {}
"""Depth -> the first image that this process read with it."""
LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
"""In a file name, a byte that is not UTF-8."""
TRANSPOSED = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


def refuse_url(path: str | os.PathLike[str]) -> None:
    """Refuse the URL of an image.

    Raises:
        DfmsdError: It is one.
    """
    if "://" in str(path):
        raise DfmsdError(f"{path}: a URL, which is not read; download the image, and give the file")


def read_image(path: str | Path) -> Tensor:
    """Decode an image file to uint8 RGB, ``3 x H x W``, with its EXIF orientation applied.

    Only the upper 8 bits of 16-bit images and the first frame of animations are kept; transparency is dropped. Gray in
    16 bits whose values all fit into 8 or 12 is read as that. This is logged once, and so is that images differ in it.

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
        DfmsdError: The image has floating-point pixels, or gray values beyond 16 bits.
    """
    _check_mode(image, name)
    image.load()  # which turns a TIFF, but no other
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # PIL's own conversion of 16-bit gray clips at 255
        image = Image.fromarray(_to_8_bits(np.asarray(image), name))
    if image.mode != "RGB":  # it would be copied all the same
        image = image.convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _check_mode(image: Image.Image, name: str) -> None:
    if image.mode == "F":
        raise DfmsdError(f"{name}: floating-point pixels have no known range; save the image with 8 or 16 bits")


def _to_8_bits(gray: npt.NDArray[Any], name: str) -> npt.NDArray[np.uint8]:
    low, high = int(gray.min(initial=0)), int(gray.max(initial=0))
    if low < 0 or high >= 2**16:
        raise DfmsdError(f"{name}: gray values from {low} to {high} do not fit into 16 bits; save it with 8 or 16 bits")
    bits = next(bits for bits in GRAY_BITS if high < 2**bits)
    if high and bits not in _first_of_depth:
        _warn_of_depth(bits, name)
        _first_of_depth[bits] = name
    return (gray >> (bits - 8)).astype(np.uint8)


def _warn_of_depth(bits: int, name: str) -> None:
    if len(_first_of_depth) == 1:
        ((other, first),) = _first_of_depth.items()
        logger.warning(
            "%s: its 16-bit gray values are read as %d bits, those of %s as %d, so the same value has another "
            "brightness in each; save all images with one depth, such as 8 bits",
            *(name, bits, first, other),
        )
    elif not _first_of_depth and bits < max(GRAY_BITS):
        logger.warning("%s: none of its 16-bit gray values needs more than %d bits, so it is read as such", name, bits)


def read_size(path: str | Path) -> tuple[int, int]:
    """Read the height and width of the image that `read_image` returns, from the header or the tar file's index alone.

    Raises:
        DfmsdError: The file is missing, suspiciously large or not an image, its header is broken, or `read_image`
            refuses its kind of pixels.
    """
    if (found := find_member(path)) is not None:
        return found[1].height, found[1].width
    with _open_image(path) as file:
        _check_mode(file, str(path))
        exif = Image.Image.getexif(file)  # PngImageFile.getexif would decode all pixels
        transposed = exif.get(ExifTags.Base.Orientation) in TRANSPOSED
        if transposed and file.format == "TIFF":  # PIL transposes TIFF itself, when loading
            file.load()
            transposed = False
        width, height = file.size
        if file.mode == "I" and file.format == "TIFF":  # 32 bits, of which 16 may be used
            rgb_tensor(file, str(path))
        return (width, height) if transposed else (height, width)


def image_suffixes() -> set[str]:
    """Return the suffixes of image files, in lower case, such as ``.jpg``."""
    return {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}


def image_suffix(path: Path) -> str:
    """Return the suffix of an image file, or that of its format where it has none of an image.

    Raises:
        DfmsdError: It has none, and is not an image.
    """
    if path.suffix.lower() in image_suffixes():
        return path.suffix
    with _open_image(path) as file:
        name = str(file.format)
        return USUAL_SUFFIXES.get(name, f".{name.lower()}")


def list_images(folder: Path, extra_suffixes: Collection[str] = ()) -> list[Path]:
    """List the files in a folder and its subfolders that have the suffix of an image, sorted by name.

    Hidden files, and all that is in hidden subfolders, are left out.

    Args:
        folder: Folder to search.
        extra_suffixes: Suffixes to include besides those of images, such as ``.mp4``.

    Raises:
        DfmsdError: The name of an image is not UTF-8, so it cannot be written to a file.
    """
    suffixes = image_suffixes() | set(extra_suffixes)
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.suffix.lower() in suffixes]
    names = [name for name in names if not any(map(is_hidden, name.parts)) and (folder / name).is_file()]
    _check_encoding(names, folder)
    return [folder / name for name in names]


def _check_encoding(names: Sequence[Path], folder: Path) -> None:
    other = [os.fsencode(name) for name in names if LONE_SURROGATE.search(str(name))]
    if other:
        raise DfmsdError(
            f"{folder}: the names of {len(other)} of its {len(names)} images are not UTF-8, the first is {other[0]!r}; "
            "rename them"
        )


@contextmanager
def _open_image(path: str | Path) -> Iterator[Image.Image]:
    Image.init()
    try:
        with Image.open(image_source(path), formats=[name for name in FORMATS if name in Image.OPEN]) as file:
            yield file
    except DfmsdError:
        raise
    except Exception as error:  # decoders of broken files raise any kind of exception
        raise DfmsdError(f"{path}: cannot be decoded as an image ({error}); replace or remove it") from error
