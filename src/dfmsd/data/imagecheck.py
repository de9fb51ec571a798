"""Sizes of image files, compared with what annotations say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dfmsd.data.images import read_size
from dfmsd.data.records import ImageRecord
from dfmsd.errors import DfmsdError
from dfmsd.utils.threads import map_in_threads


def read_sizes(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """Read height and width of every image from its header; pixels are not decoded.

    Raises:
        DfmsdError: A file is not an image.
    """
    return map_in_threads(read_size, paths)


def turning_advice(given: tuple[int | None, int | None], own: tuple[int, int]) -> str:
    """Return the other way out where an annotated size is that of the image before its EXIF orientation, else "".

    Args:
        given: Width and height in the annotations.
        own: Width and height of the image.
    """
    if given != own[::-1]:
        return ""
    return ", or remove the EXIF orientation from the file if the boxes were drawn without it"


def check_size(record: ImageRecord, size: tuple[int, int], file: Path) -> None:
    """Compare an image's height and width with those of its record.

    Raises:
        DfmsdError: They differ.
    """
    if size != (record.height, record.width):
        raise DfmsdError(
            f"{record.path} is {size[1]} x {size[0]} pixels (EXIF orientation applied), but was "
            f"{record.width} x {record.height} when {file} was read; correct width, height and boxes there"
        )
