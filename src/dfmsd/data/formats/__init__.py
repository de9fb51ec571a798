"""Readers of data sets: one module per format, which recognizes its layouts and reads one split of them."""

from __future__ import annotations

from pathlib import Path

from dfmsd.data.formats import coco, voc, yolo
from dfmsd.data.formats.layout import Content, Layout, Source
from dfmsd.errors import DfmsdError
from dfmsd.utils.files import check_path, is_hidden

__all__ = ["FORMATS", "Content", "Layout", "Source", "layout_of", "recognize"]

FORMATS = (coco, yolo, voc)
"""Each has ``recognize(root)``, which returns a `Layout` or None, and ``expected(root)``, a hint for a message."""
_ARCHIVE = "an archive: unpack it, and give the folder"
_EXPORT = "which is not read: export the data set as COCO, YOLO or Pascal VOC"
CVAT = f"CVAT's own format, {_EXPORT}"
UNREAD = {
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"), _ARCHIVE),
    ".csv": f"a CSV file, {_EXPORT}",
    ".parquet": f"a Parquet file, {_EXPORT}",
    ".tfrecord": f"a TFRecord, {_EXPORT}",
}
"""Suffix of a file that is not read -> what it is, and what to do."""
SHOWN = 8
"""Entries of a folder that a message lists."""


def recognize(root: str | Path) -> Layout:
    """Find out the layout of a data set from the names of its files.

    Args:
        root: Folder of the data set, or of a folder that holds nothing else, as in an unpacked archive.

    Raises:
        DfmsdError: There is no such folder, no reader knows its layout, or several folders in it are data sets.
    """
    check_path("data.root", str(root))
    root = Path(root).expanduser()
    if not root.exists():
        raise DfmsdError(
            f"data.root: no folder {root.absolute()}; give the folder of a data set in the layout of COCO, YOLO or "
            "Pascal VOC, or `digits` for the built-in data set"
        )
    layout = layout_of(root)
    if layout is not None:
        return layout
    inner = [found for folder in _folders(root) if (found := layout_of(folder)) is not None]
    if len(inner) == 1:
        return inner[0]
    if inner:
        places = ", ".join(str(found.root) for found in inner[:SHOWN])
        raise DfmsdError(f"data.root: {root} holds several data sets; give one of them: {places}")
    raise DfmsdError(f"data.root: {root} {_contents(root)}, which is no known layout; {_expected(root)}")


def layout_of(root: Path) -> Layout | None:
    """Return the layout of a folder itself, or None if no reader knows it."""
    return next((layout for format in FORMATS if (layout := format.recognize(root)) is not None), None)


def _folders(root: Path) -> list[Path]:
    return (
        [path for path in sorted(root.iterdir()) if path.is_dir() and not is_hidden(path.name)] if root.is_dir() else []
    )


def _contents(root: Path) -> str:
    if not root.is_dir():
        return "is a file"
    names = [f"{path.name}/" if path.is_dir() else path.name for path in sorted(root.iterdir())]
    return f"holds {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}" if names else "is empty"


def _expected(root: Path) -> str:
    return yolo.expected(root) or _unread(root) or voc.expected(root) or coco.expected(root) or coco.EXPECTED


def _unread(root: Path) -> str | None:
    """Name a file in a format that is not read, and say what to do with it."""
    for path in (root, *sorted(root.glob("*")), *sorted(root.glob("*/*"))):
        advice = CVAT if path.name == "annotations.xml" else UNREAD.get(path.suffix.lower())
        if advice is not None and path.is_file() and not is_hidden(path.name):
            return f"{path.name} is {advice}"
    return None
