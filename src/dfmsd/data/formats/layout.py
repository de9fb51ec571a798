"""What the readers of all formats return: layouts, and the content of a split."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from dfmsd.data.truth import GroundTruth
from dfmsd.errors import DfmsdError

Entry = dict[str, Any]
SPLITS = ("train", "val", "trainval", "test")
"""Our names of splits."""
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters and lone surrogates, which file systems, pages and terminals reject."""
ALIASES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
"""Other names of splits -> ours."""


class Content(NamedTuple):
    """Validated content of one split.

    Images are numbered from 1, since the COCO evaluation passes ids through floating point.
    """

    images: list[Entry]
    """``id``, ``path`` of the file, and the ``width`` and ``height`` that it has."""
    categories: list[Entry]
    """``id`` and ``name``, sorted by id."""
    truth: GroundTruth
    listed: bool = True
    """Whether the format has a list of classes; otherwise the categories are those of the objects in this split."""


class Source(Protocol):
    """Where a split is, and the reader of it."""

    @property
    def file(self) -> Path:
        """File or folder that messages about the split name."""

    def fingerprint(self) -> str | None:
        """Return a digest of the annotations and of where they are, or None if reading them again takes no time."""

    def read(self) -> Content:
        """Read and validate the split.

        Raises:
            DfmsdError: Something is missing, malformed or contradictory.
        """


class Layout(NamedTuple):
    """A recognized data set."""

    name: str
    """Such as "Roboflow COCO"."""
    root: Path
    sources: Mapping[str, Source]
    """Name of each split, as the data set has it -> its source."""

    def find(self, split: str) -> Source | None:
        """Return the source of a split by its own name, or by ours: ``val`` is also ``valid`` and ``val2017``.

        Raises:
            DfmsdError: Several splits answer to the name.
        """
        if split in self.sources:
            return self.sources[split]
        names = [name for name in self.sources if plain_name(name) == split]
        if len(names) > 1:
            key = split if split in ("train", "val", "test") else "val"
            raise DfmsdError(f"data.root: {self.root} has {', '.join(names)}; choose one with data.{key}")
        return self.sources[names[0]] if names else None


def plain_name(split: str) -> str:
    """Return our name of a split: ``val2017`` and ``valid`` are ``val``."""
    name = re.sub(r"[-_]?\d{4}$", "", split.lower())
    return ALIASES.get(name, name)


def without_unions(splits: Iterable[str]) -> list[str]:
    """Leave out ``trainval`` where ``train`` and ``val``, of which it consists, are there, too.

    Args:
        splits: Names, as a data set has them.
    """
    splits = list(splits)
    both = {"train", "val"} <= set(map(plain_name, splits))
    return [split for split in splits if not (both and plain_name(split) == "trainval")]


def check_names(names: Mapping[int, str], file: Path) -> None:
    """Check class names: they are not empty, without control characters, and differ.

    Args:
        names: Number of a class -> its name.
        file: File that has them, for messages.

    Raises:
        DfmsdError: A name is none.
    """
    for number, name in names.items():
        if not name or CONTROL_CHARACTERS.search(name):
            reason = "has control characters" if name else "is empty"
            raise DfmsdError(f"{file}: the name {name!r} of class {number} {reason}; rename it")
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise DfmsdError(f"{file}: class name {twice[0]!r} occurs more than once; make it unique")
