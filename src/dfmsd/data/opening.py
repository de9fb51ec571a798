"""Splits of a data set, opened by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dfmsd.data.config import DataConfig
from dfmsd.data.digits import cached_digits
from dfmsd.data.formats import Layout, Source, recognize
from dfmsd.data.formats.coco import CocoSource
from dfmsd.data.remote import local_root
from dfmsd.data.split import DetectionSplit
from dfmsd.errors import DfmsdError

SPLITS = ("train", "val", "test")
"""Splits that a configuration can name."""


def open_split(data: DataConfig | str | Path, split: str) -> DetectionSplit:
    """Read and validate one split of a data set; the others are not opened.

    Args:
        data: Data configuration, folder, or ``digits``.
        split: ``train``, ``val`` or ``test``, or the name that a split has in the data set.

    Raises:
        DfmsdError: There is no such split, or it is damaged.
    """
    config = data if isinstance(data, DataConfig) else DataConfig(root=str(data))
    source = _find(config, split)
    if source is None:
        raise DfmsdError(_missing(config, split))
    return DetectionSplit(source)


def has_split(config: DataConfig, split: str) -> bool:
    """Return whether a data set has a split; it is not opened.

    Raises:
        DfmsdError: The configuration names one that is not there.
    """
    found = _find(config, split) is not None
    if not found and _named(config, split):
        raise DfmsdError(_missing(config, split))
    return found


def find_layout(root: str | Path) -> Layout:
    """Recognise the layout of a folder, of a sharded data set at a URL, or of the built-in one for ``digits``."""
    return recognize(cached_digits() if str(root) == "digits" else local_root(root))


def describe(config: DataConfig, opened: Mapping[str, int]) -> str:
    """Describe a data set in one line.

    Args:
        config: Data configuration.
        opened: Split -> number of images, of the splits that were opened.
    """
    counts = ", ".join(f"{count} {split}" for split, count in opened.items())
    if all(isinstance(_named(config, split), dict) for split in opened):
        return f"{counts} images"
    layout = find_layout(config.root)
    sources = [_find(config, split) for split in opened]
    closed = [name for name, source in layout.sources.items() if source not in sources]
    rest = f"; not opened: {', '.join(closed)}" if closed else ""
    return f"{layout.name} layout in {layout.root}: {counts} images{rest}"


def _named(config: DataConfig, split: str) -> str | dict[str, str] | None:
    return getattr(config, split) if split in SPLITS else None


def _find(config: DataConfig, split: str) -> Source | None:
    named = _named(config, split)
    if isinstance(named, dict):
        root = local_root(config.root)
        return CocoSource(root / named["annotations"], (root / named["images"],), root)
    layout = find_layout(config.root)
    source = layout.find(named or split)
    if source is None and named is None and split == "train" and config.holdout and len(layout.sources) == 1:
        return next(iter(layout.sources.values()))  # a data set without splits, which holdout divides
    return source


def _missing(config: DataConfig, split: str) -> str:
    layout = find_layout(config.root)
    named = _named(config, split)
    key = f"data.{split}: {layout.root}" if named else f"data.root: {layout.root}"
    wanted = named or split
    has = ", ".join(layout.sources)
    advice = {
        "train": "name one with data.train and data.val, or set aside a share of the images with data.holdout",
        "val": "name another with data.val, or set aside a share of the training images with data.holdout",
    }.get(split, f"choose one of these, or name it with data.{split}" if split in SPLITS else "choose one of these")
    return f"{key} ({layout.name} layout) has no split {wanted}, only {has}; {advice}"
