"""Image files by the names that annotations give them."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path, PurePath
from urllib.parse import unquote

from dfmsd.data.formats.layout import SPLITS, plain_name
from dfmsd.data.shards import list_members
from dfmsd.errors import DfmsdError
from dfmsd.utils.files import is_hidden

logger = logging.getLogger("dfmsd")
NAMED = 3
"""Missing files that a message names."""
COMPARED = 5000
"""Files that are compared with a missing name to find the nearest."""


def find_images(names: Sequence[str], folders: Sequence[Path], root: Path, file: Path) -> list[Path]:
    r"""Find the image files of a split; no link may lead out of the data set.

    A file whose name differs by form only (``images\a.jpg``, ``C:\x\a.jpg``, ``a.JPG``, ``train/a.jpg``,
    ``my%20a.jpg``, ``a``, another Unicode normalization) is taken if it is the only one that fits, and free.

    Args:
        names: File names, relative to one of the folders.
        folders: Folders, the likeliest first; they need not exist.
        root: Folder of the data set; it may itself be a link.
        file: Annotation file, for messages.

    Raises:
        DfmsdError: Files are missing or lie outside ``root``.
    """
    folder, missing, outside = _best_folder(names, folders, root.resolve())
    paths = [folder / name for name in names]
    absent = {*missing, *outside}
    if absent:
        taken = {path for path, name in zip(paths, names, strict=True) if name not in absent}
        found = _by_form(absent, taken, _files(folder, root.resolve()))
        missing = [name for name in missing if name not in found]
        outside = [name for name in outside if name not in found]
        _refuse(missing, outside, len(names), folder, root, file)
        paths = [found.get(name, path) for name, path in zip(names, paths, strict=True)]
        name = next(name for name in names if name in found)
        logger.warning(
            "%s: %d of the %d images have a file whose name is written otherwise, such as %s for %s",
            *(file, len(found), len(names), found[name], name),
        )
    return paths


def _best_folder(
    names: Sequence[str], folders: Sequence[Path], root: Path
) -> tuple[Path, Sequence[str], Sequence[str]]:
    """Return the folder with the fewest missing names, these, and those that lead out of ``root``."""
    found: list[tuple[Path, list[str], list[str]]] = []
    for folder in (folder for folder in folders if folder.is_dir()):
        found.append((folder, *_find_missing(names, folder, root)))
        if not found[-1][1] and not found[-1][2]:
            break
    return min(found, key=lambda one: len(one[1]) + len(one[2]), default=(folders[0], names, []))


def _find_missing(names: Iterable[str], folder: Path, root: Path) -> tuple[list[str], list[str]]:
    """Return missing names and names outside ``root``; scans each folder once instead of calling `stat` per image."""
    by_parent: dict[PurePath, list[tuple[str, str]]] = defaultdict(list)
    for name in names:
        path = PurePath(name)
        by_parent[path.parent].append((name, path.name))
    missing: list[str] = []
    outside: list[str] = []
    for parent, pairs in by_parent.items():
        is_link = dict.fromkeys(list_members(folder / parent), False) or _list_files(folder / parent)
        missing += [name for name, last in pairs if last not in is_link]
        folder_outside = is_link and not (folder / parent).resolve().is_relative_to(root)
        suspects = (name for name, last in pairs if last in is_link and (folder_outside or is_link[last]))
        outside += [name for name in suspects if not (folder / name).resolve().is_relative_to(root)]
    return missing, outside


def _list_files(folder: Path) -> dict[str, bool]:
    """Return the names of the files in a folder, and whether each is a link; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.is_symlink() for entry in entries if entry.is_file()}
    except (OSError, ValueError):
        return {}


def check_inside(paths: Sequence[Path], folders: Sequence[Path], file: Path) -> None:
    """Check that no path or link leads out of the folders of a data set.

    Args:
        paths: Image files.
        folders: Folders that may hold them.
        file: File that lists them, for messages.

    Raises:
        DfmsdError: An image lies elsewhere.
    """
    resolved = [folder.resolve() for folder in folders]

    def inside(path: Path) -> bool:
        return any(path.is_relative_to(folder) for folder in resolved)

    parents = {parent: inside(parent.resolve()) for parent in {path.parent for path in paths}}
    outside = [p for p in paths if not (inside(p.resolve()) if p.is_symlink() else parents[p.parent])]
    if outside:
        raise DfmsdError(
            f"{file}: {len(outside)} of its {len(paths)} images lead out of {folders[0]}, the first is {outside[0]}; "
            "put the files themselves there, or choose a data.root that contains both"
        )


def _files(folder: Path, root: Path) -> dict[Path, Path]:
    """List the files in a folder and below, but not in folders of other splits: path -> path relative to it."""
    found: dict[Path, Path] = {}
    if not folder.resolve().is_relative_to(root):
        return found
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if plain_name(name) not in SPLITS and not is_hidden(name)]
        for path in (Path(place, name) for name in names):
            inside = not path.is_symlink() or path.resolve().is_relative_to(root)
            if inside and not is_hidden(path.name):
                found[path] = path.relative_to(folder)
    return found


def _by_form(names: Iterable[str], taken: set[Path], files: dict[Path, Path]) -> dict[str, Path]:
    """Find the only free file whose path ends like a name, the longest end first, then without its suffix."""
    ends: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for path, relative in files.items():
        if path not in taken:
            parts = _form(str(relative))
            for start in range(len(parts)):
                ends[parts[start:]].append(path)
            ends["", PurePath(parts[-1]).stem].append(path)
    found: dict[str, Path] = {}
    for name in names:
        parts = _form(name)
        keys = [parts[start:] for start in range(len(parts))] + [("", part) for part in parts[-1:]]
        fitting = next((ends[key] for key in keys if key in ends), [])
        if len(fitting) == 1:
            found[name] = fitting[0]
    claims = Counter(found.values())
    return {name: path for name, path in found.items() if claims[path] == 1}


def _form(name: str) -> tuple[str, ...]:
    """Return the parts of a path without the differences between systems."""
    plain = unicodedata.normalize("NFC", unquote(name).replace("\\", "/")).casefold()
    return tuple(part for part in plain.split("/") if part not in ("", ".", ".."))


def _refuse(
    missing: Sequence[str],
    outside: Sequence[str],
    count: int,
    folder: Path,
    root: Path,
    file: Path,
) -> None:
    if missing:
        named = ", ".join(missing[:NAMED]) + (", ..." if len(missing) > NAMED else "")
        present = [path.name for path in _files(folder, root.resolve())][:COMPARED]
        last = PurePath(missing[0]).name
        near = get_close_matches(last, present, n=1)
        hint = f" (the nearest name there is {near[0]})" if near else ""
        if present.count(last) > 1:
            hint = f" ({present.count(last)} files in its subfolders have the name {last})"
        raise DfmsdError(
            f"{folder}: {len(missing)} of the {count} images in {file} are missing: {named}{hint}; add the files or "
            "remove their entries"
        )
    if outside:
        raise DfmsdError(
            f"{folder}: {len(outside)} of the {count} images in {file} lead out of {root}, the first is {outside[0]}; "
            "put the files themselves there, or choose a data.root that contains both"
        )
