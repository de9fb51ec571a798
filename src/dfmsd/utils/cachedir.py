"""Cache folders on disk: location, size, locks and eviction."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Collection
from pathlib import Path
from typing import IO

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger("dfmsd")

GIB = 2**30
ATTEMPTS = 10
"""Attempts to open a store that other processes keep evicting."""
MARKER = ".used"
"""Empty file in each store; its time is when a run last opened the store, and open stores hold a shared lock on it."""


def cache_root() -> Path:
    """Return the folder of files that can be recomputed: ``$DFMSD_CACHE`` or ``~/.cache/dfmsd``."""
    return Path(os.environ.get("DFMSD_CACHE") or "~/.cache/dfmsd").expanduser()


def folder_bytes(folder: Path) -> int:
    """Return the total size of the files in a folder and its subfolders; 0 if it does not exist."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:  # another process has just finished or evicted it
                continue
    return total


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk that a folder, which need not exist yet, is or will be on."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def open_folder(folder: Path) -> IO[bytes] | None:
    """Create a store's folder if needed, and protect it from eviction while the returned file is open.

    Returns:
        The locked marker file; None where files cannot be locked (Windows, some network disks), which leaves the
        folder unprotected.

    Raises:
        OSError: The folder cannot be written to.
    """
    for _ in range(ATTEMPTS):
        folder.mkdir(parents=True, exist_ok=True)
        marker = folder / MARKER
        try:
            marker.touch()
            file = marker.open("r+b")
        except FileNotFoundError:  # evicted in the meantime
            continue
        if _lock(file, shared=True) and _is_same_file(file, marker):
            return file
        file.close()
    return None


def make_room(root: Path, keep: Collection[str], need: int, budget: int) -> int:
    """Evict stores of other runs, the least recently opened first, until ``need`` bytes fit into the budget.

    Stores that are open in any process are kept, except where files cannot be locked (see `open_folder`).

    Args:
        root: Folder of stores.
        keep: Names of the own stores, which are not evicted.
        need: Bytes that these will take when complete.
        budget: Maximum bytes of all stores in ``root``.

    Returns:
        Bytes that the own stores may take.
    """
    others = [marker.parent for marker in root.glob(f"*/{MARKER}") if marker.parent.name not in keep]
    sizes = {folder: folder_bytes(folder) for folder in sorted(others, key=_last_opened)}
    for folder, size in list(sizes.items()):
        if sum(sizes.values()) + need <= budget:
            break
        if _evict(folder):
            logger.info("cache: evicted %s (%.2f GiB)", folder, size / GIB)
            del sizes[folder]
        else:
            logger.warning("cache: %s (%.2f GiB) is in use by another run and is not evicted", folder, size / GIB)
    return max(0, budget - sum(sizes.values()))


def _last_opened(folder: Path) -> int:
    try:
        return (folder / MARKER).stat().st_mtime_ns
    except FileNotFoundError:  # another process has just evicted it
        return 0


def _evict(folder: Path) -> bool:
    """Remove a store unless it is in use; renaming it first makes it disappear at once."""
    removed = folder.with_name(f".{folder.name.lstrip('.')}.{os.getpid()}.evicted")
    try:
        with (folder / MARKER).open("r+b") as file:
            locked = _lock(file, shared=False)
            if locked:
                folder.rename(removed)
        if locked is None:  # Windows cannot rename a folder with an open file
            folder.rename(removed)
    except FileNotFoundError:  # another process has evicted it
        return True
    except OSError:
        return False
    shutil.rmtree(removed, ignore_errors=True)
    return locked is not False


def _is_same_file(file: IO[bytes], path: Path) -> bool:
    """Return whether an open file is still the one at ``path``: the folder may have been evicted and made again."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: IO[bytes], *, shared: bool) -> bool | None:
    """Lock a file until it is closed: wait for a shared lock, but not for an exclusive one.

    Returns:
        Whether it is locked; None where files cannot be locked.
    """
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
