"""Key-value stores of tensors with a size limit: in RAM, or on disk and shared between runs.

A full store keeps its entries and takes no more. Training visits every image once per epoch, so evicting the oldest
entry would always evict the one that is needed next, and no entry would ever be found.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dfmsd.errors import DfmsdError
from dfmsd.utils.cachedir import folder_bytes, open_folder
from dfmsd.utils.files import write_tensors

logger = logging.getLogger("dfmsd")

Entry = dict[str, Tensor]


class Store(Protocol):
    """Interface of a store."""

    def get(self, key: str) -> Entry | None:
        """Return an entry, which must not be modified, or None if it is missing."""

    def put(self, key: str, entry: Entry) -> None:
        """Add an entry if the budget allows."""

    def release(self) -> None:
        """Free the RAM that entries take."""


class RamStore:
    """Store in the RAM of this process.

    Args:
        budget: Maximum bytes of all entries.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.used = 0
        self._entries: dict[str, Entry] = {}

    def get(self, key: str) -> Entry | None:
        """Return an entry, which must not be modified, or None if it is missing."""
        return self._entries.get(key)

    def put(self, key: str, entry: Entry) -> None:
        """Add an entry if the budget allows."""
        size = entry_bytes(entry)
        if key not in self._entries and self.used + size <= self.budget:
            self._entries[key] = entry
            self.used += size

    def release(self) -> None:
        """Remove all entries."""
        self._entries.clear()
        self.used = 0


class DiskStore:
    """Store of one safetensors file per entry, read through a memory map.

    Several processes may share the folder: files appear complete or not at all, and the folder is not evicted while
    it is open (see `dfmsd.utils.cachedir.make_room`). A file that cannot be read counts as missing and is written
    again. Processes that fill a folder at the same time do not see each other's use of the budget.

    Args:
        folder: Folder of the store; created if missing.
        budget: Maximum bytes in the folder, files of earlier runs included.

    Raises:
        DfmsdError: The folder cannot be created.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder = folder
        self.budget = budget
        try:
            self._lock = open_folder(folder)
        except OSError as error:
            raise DfmsdError(
                f"cache: cannot write to {folder} ({error.strerror}); set DFMSD_CACHE to a writable folder"
            ) from error
        self.used = folder_bytes(folder)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the lock, which stays with the process that opened the folder."""
        return {**vars(self), "_lock": None}

    def get(self, key: str) -> Entry | None:
        """Return an entry, which must not be modified, or None if it is missing or its file is damaged."""
        try:
            return load_file(self._path(key))
        except (OSError, SafetensorError):
            return None

    def put(self, key: str, entry: Entry) -> None:
        """Add an entry if budget and disk allow; after the first failure, which is logged, nothing more is added."""
        size = entry_bytes(entry)
        if self.used + size > self.budget:
            return
        try:
            write_tensors(self._path(key), entry)
        except (OSError, SafetensorError) as error:
            logger.warning("cache: cannot write to %s (%s); nothing more is cached there", self.folder, error)
            self.budget = 0
        else:
            self.used += size

    def release(self) -> None:
        """Do nothing: entries take no RAM."""

    def _path(self, key: str) -> Path:
        if not re.fullmatch(r"[0-9a-z-]+", key):
            raise ValueError(f"key {key!r} must consist of lowercase letters, digits and dashes")
        return self.folder / f"{key}.safetensors"


def entry_bytes(entry: Entry) -> int:
    """Return the total bytes of an entry's tensors."""
    return sum(value.nbytes for value in entry.values())
