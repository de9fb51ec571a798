"""Parsing of COCO's JSON without its polygons, which are nine tenths of a file and of no use here."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from dfmsd.data.formats.text import read_bytes, to_text
from dfmsd.errors import DfmsdError


class Category(msgspec.Struct, gc=False):
    """A class; the types of its values are not checked here."""

    id: Any = None
    name: Any = None


class Image(msgspec.Struct, gc=False):
    """An image; the types of its values are not checked here."""

    id: Any = None
    file_name: Any = None
    width: Any = None
    height: Any = None


class Annotation(msgspec.Struct, gc=False):
    """An object; the types of its values are not checked here."""

    id: Any = None
    image_id: Any = None
    category_id: Any = None
    bbox: Any = None
    area: Any = None
    iscrowd: Any = None
    ignore: Any = None
    segmentation: Any = None

    def read_segmentation(self) -> Any:
        """Return the polygons or the run-length encoding, which are only parsed now."""
        unread = isinstance(self.segmentation, msgspec.Raw)
        return msgspec.json.decode(self.segmentation) if unread else self.segmentation


class _Unread(Annotation, gc=False):
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


class _File(msgspec.Struct):
    images: list[Image] | None = None
    categories: list[Category] | None = None
    annotations: list[_Unread] | None = None


KINDS: dict[str, type[msgspec.Struct]] = {"images": Image, "categories": Category, "annotations": Annotation}


def read_json(file: Path) -> dict[str, Any]:
    """Read the lists of a file.

    Returns:
        ``images``, ``categories`` and ``annotations``, as far as the file has them. An element that is no object stays
        as it is, and so does a value that is no list.

    Raises:
        DfmsdError: The file is missing, empty or damaged, or does not hold an object.
    """
    if not file.is_file():
        raise DfmsdError(f"{file} is missing; put the COCO annotations there")
    encoded = read_bytes(file)
    if not encoded.strip():
        raise DfmsdError(f"{file}: the file is empty; write it again")
    try:
        with _uncollected():
            return msgspec.structs.asdict(msgspec.json.decode(encoded, type=_File))
    except (msgspec.MsgspecError, RecursionError):
        return _read_slowly(encoded, file)


def _read_slowly(encoded: bytes, file: Path) -> dict[str, Any]:
    """Read with Python's parser, which accepts NaN and says where a file is damaged."""
    try:
        content = json.loads(to_text(encoded, file))
    except (ValueError, RecursionError) as error:
        raise DfmsdError(f"{file}: not valid JSON ({error}); write the file again") from error
    if not isinstance(content, dict):
        raise DfmsdError(
            f"{file}: expected a JSON object with images, annotations and categories, got a {type(content).__name__}"
        )
    return {key: _to_structs(content.get(key), kind) for key, kind in KINDS.items()}


def _to_structs(value: Any, kind: type[msgspec.Struct]) -> Any:
    if not isinstance(value, list):
        return value
    names = kind.__struct_fields__
    return [
        kind(**{name: entry[name] for name in names if name in entry}) if isinstance(entry, dict) else entry
        for entry in value
    ]


@contextmanager
def _uncollected() -> Iterator[None]:
    """Switch garbage collection off, which would look through a million new objects again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
