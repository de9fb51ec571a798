"""Keyed stores of tensors under a budget: in RAM, or on disk and shared by the runs of a machine.

A store that is full keeps what it has. Training visits every image once an epoch, so that throwing out the oldest
entry would always throw out the one that is wanted next, and nothing would ever be found.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dfmsd.errors import DfmsdError
from dfmsd.utils.files import write_atomically

logger = logging.getLogger("dfmsd")

Entry = dict[str, Tensor]
GIB = 2**30
MARKER = ".used"
"""Empty file of a folder that a `DiskStore` made; its time tells when a run last opened the folder."""


class Store(Protocol):
    """What a cache asks of its store."""

    def get(self, key: str) -> Entry | None:
        """Give an entry, which must not be written into; none if there is none."""

    def put(self, key: str, entry: Entry) -> None:
        """Keep an entry if the budget allows."""

    def release(self) -> None:
        """Give the RAM back that entries take."""


class RamStore:
    """Entries in the RAM of this process.

    Args:
        budget: most bytes of all entries.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.used = 0
        self._entries: dict[str, Entry] = {}

    def get(self, key: str) -> Entry | None:
        """Give an entry, which must not be written into; none if there is none."""
        return self._entries.get(key)

    def put(self, key: str, entry: Entry) -> None:
        """Keep an entry if the budget allows."""
        size = entry_bytes(entry)
        if key not in self._entries and self.used + size <= self.budget:
            self._entries[key] = entry
            self.used += size

    def release(self) -> None:
        """Forget every entry."""
        self._entries.clear()
        self.used = 0


class DiskStore:
    """One safetensors file for each entry, read through a memory map.

    Several processes may share the folder: files appear whole or not at all. A file that cannot be read counts as
    missing and is written again. Processes that fill a folder at the same time each count for themselves.

    Args:
        folder: made if it is missing.
        budget: most bytes in the folder, files of earlier runs included.

    Raises:
        DfmsdError: the folder cannot be made.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder = folder
        self.budget = budget
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / MARKER).touch()
        except OSError as error:
            raise DfmsdError(
                f"cache: cannot write to {folder} ({error.strerror}); set DFMSD_CACHE to a writable folder"
            ) from error
        self.used = folder_bytes(folder)

    def get(self, key: str) -> Entry | None:
        """Give an entry, which must not be written into; none if there is none or its file is damaged."""
        try:
            return load_file(self._path(key))
        except (OSError, SafetensorError):
            return None

    def put(self, key: str, entry: Entry) -> None:
        """Keep an entry if budget and disk allow; the first failure is told, and nothing is kept from then on."""
        size = entry_bytes(entry)
        if self.used + size > self.budget:
            return
        try:
            write_atomically(self._path(key), lambda file: save_file(entry, file))
        except (OSError, SafetensorError) as error:
            logger.warning("cache: cannot write to %s (%s); what is not there yet is not kept", self.folder, error)
            self.budget = 0
        else:
            self.used += size

    def release(self) -> None:
        """Do nothing: entries take no RAM."""

    def _path(self, key: str) -> Path:
        if not re.fullmatch(r"[0-9a-z-]+", key):
            raise ValueError(f"key {key!r}: expected lower-case letters, digits and dashes")
        return self.folder / f"{key}.safetensors"


def cache_root() -> Path:
    """Give the folder of everything that can be made again: ``$DFMSD_CACHE`` or ``~/.cache/dfmsd``."""
    return Path(os.environ.get("DFMSD_CACHE") or "~/.cache/dfmsd").expanduser()


def entry_bytes(entry: Entry) -> int:
    """Sum the bytes of an entry's tensors."""
    return sum(value.nbytes for value in entry.values())


def folder_bytes(folder: Path) -> int:
    """Sum the bytes of the files in a folder and below; 0 if it does not exist."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:  # another process has just finished or evicted it
                continue
    return total


def free_bytes(folder: Path) -> int:
    """Give the free bytes of the disk that a folder, which need not exist yet, is or will be on."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def make_room(root: Path, own: Collection[str], need: int, budget: int) -> int:
    """Remove the stores of other runs, the least recently opened first, until ``need`` bytes fit into the budget.

    Args:
        root: its folders are stores.
        own: names of the folders that stay.
        need: bytes that these will take in the end.
        budget: most bytes of all stores of ``root``.

    Returns:
        Bytes that the own folders may take.
    """
    markers = [marker for marker in root.glob(f"*/{MARKER}") if marker.parent.name not in own]
    markers.sort(key=lambda marker: marker.stat().st_mtime_ns)
    sizes = {marker.parent: folder_bytes(marker.parent) for marker in markers}
    for folder in list(sizes):
        if sum(sizes.values()) + need <= budget:
            break
        logger.info("cache: %s makes room (%.2f GiB)", folder, sizes.pop(folder) / GIB)
        shutil.rmtree(folder, ignore_errors=True)
    return budget - sum(sizes.values())
