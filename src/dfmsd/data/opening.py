"""Splits of a data set, opened by name."""

from __future__ import annotations

from pathlib import Path

from dfmsd.data.config import DataConfig
from dfmsd.data.digits import cached_digits
from dfmsd.data.formats import Layout, Source, recognize
from dfmsd.data.split import DetectionSplit
from dfmsd.errors import DfmsdError


def open_split(data: DataConfig | str | Path, split: str) -> DetectionSplit:
    """Read and validate one split of a data set; the others are not opened.

    Args:
        data: Data configuration, folder, or ``digits``.
        split: ``train``, ``val`` or ``test``, or the name that a split has in the data set.

    Raises:
        DfmsdError: There is no such split, or it is damaged.
    """
    root = data.root if isinstance(data, DataConfig) else data
    return DetectionSplit(find_source(find_layout(root), split))


def find_layout(root: str | Path) -> Layout:
    """Recognise the layout of a folder, or of the built-in data set for ``digits``."""
    return recognize(cached_digits() if str(root) == "digits" else root)


def find_source(layout: Layout, split: str) -> Source:
    """Return the source of a split.

    Raises:
        DfmsdError: There is no such split.
    """
    source = layout.find(split)
    if source is None:
        raise DfmsdError(
            f"data.root: {layout.root} ({layout.name} layout) has no {split} images, only {', '.join(layout.sources)}"
        )
    return source
