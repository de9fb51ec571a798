"""Cache of decoded images: whether all of them fit, and where they are kept."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Iterable
from pathlib import Path

from dfmsd.data.config import DataConfig
from dfmsd.data.records import resized_sizes
from dfmsd.data.split import DetectionSplit
from dfmsd.utils.cachedir import GIB, cache_root, make_room
from dfmsd.utils.store import DiskStore

logger = logging.getLogger("dfmsd")


def resized_bytes(splits: Iterable[DetectionSplit], image_size: int) -> int:
    """Compute the size of all resized images from the annotation files.

    Args:
        splits: The images.
        image_size: Longer side after resizing, in pixels.
    """
    return sum(3 * int(resized_sizes(split.records, image_size).prod(axis=1).sum()) for split in splits)


def choose_cache(config: DataConfig, size: int) -> str:
    """Return the kind of cache: either all images are cached or none.

    Args:
        config: Data configuration.
        size: Of all images, in bytes.

    Returns:
        ``ram``, ``disk`` or ``off``.
    """
    cache = str(config.cache)
    if cache == "off" or (cache == "ram" and config.workers):
        return "off"
    if size > config.cache_gib * GIB:
        logger.info(
            "decoded images would take %.1f GiB of %s, more than %.1f (data.cache_gib): decoding them in every epoch",
            size / GIB,
            cache,
            config.cache_gib,
        )
        return "off"
    return cache


def open_store(config: DataConfig, size: int) -> DiskStore:
    """Open the folder of a data set's decoded images at one size, after making room for them.

    Args:
        config: Data configuration.
        size: Of all images, in bytes.
    """
    root = Path(config.root).expanduser().absolute()
    name = hashlib.blake2b(f"{root} {config.image_size}".encode(), digest_size=16).hexdigest()
    folder, budget = cache_root() / "images" / name, int(min(config.cache_gib * GIB, sys.maxsize))
    return DiskStore(folder, make_room(folder.parent, {name}, size, budget))
