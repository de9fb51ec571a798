"""Locks on folders, so that no two processes write into the same one, also on a disk that machines share."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from itertools import takewhile
from pathlib import Path
from typing import Any

from filelock import SoftFileLease, Timeout

from dfmsd.errors import DfmsdError
from dfmsd.utils.console import console
from dfmsd.utils.files import make_folder, write_json

LOCK = ".writing.lock"
"""In a folder that is being written; its owner renews its time."""
WRITER = ".writing.json"
"""Who the owner is."""
HEARTBEAT = 15.0
"""Seconds between two renewals."""
LEASE = 180.0
"""Seconds without one after which a process that cannot be looked up, as on another machine, counts as ended; network
file systems may report a renewal a minute late."""
POLL = 1.0


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Reserve a folder for writing by this process; reading it needs no lock.

    A folder that does not exist is created, and removed if nothing is written there. The lock of a process that was
    killed is taken over: on the same machine at once, else after `LEASE` seconds without a sign of life.

    Args:
        folder: Folder.

    Raises:
        DfmsdError: Another process is writing there, or the folder cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise DfmsdError(f"out: {folder} is a file; name a folder")
    missing = list(takewhile(lambda place: not place.exists(), (folder, *folder.parents)))
    make_folder(folder)
    try:
        with _lease(folder, "wait for it, or choose another `out`"):
            try:
                write_json(folder / WRITER, _this_process())
                yield
            finally:
                (folder / WRITER).unlink(missing_ok=True)
    finally:
        for place in missing:
            with suppress(OSError):  # something was written there
                place.rmdir()


@contextmanager
def waiting(folder: Path) -> Iterator[None]:
    """Reserve a folder as `locked` does, but wait for the process that holds it instead of refusing.

    Args:
        folder: Folder, which is created where it is missing.

    Raises:
        DfmsdError: The folder cannot be written.
    """
    make_folder(folder)
    lock = _lock_of(folder)
    with _held(lock, folder, lock.acquire):
        yield


def is_locked(folder: Path) -> bool:
    """Return whether another process holds a folder; one that was killed no longer does."""
    if not (folder / LOCK).exists():
        return False
    lock = _lock_of(folder)
    try:
        if not _acquire(lock):
            return True
    except FileNotFoundError:  # the owner has just removed the folder
        return False
    lock.release()
    return False


def refuse_writer(folder: Path) -> None:
    """Refuse a folder that another process is writing.

    Args:
        folder: Folder, which need not exist.

    Raises:
        DfmsdError: Another process is writing there.
    """
    if (folder / LOCK).exists():
        with _lease(folder, "wait for it"):
            pass


def empty(folder: Path, last: str) -> None:
    """Delete the contents of a folder that this process has locked, except for the lock.

    Args:
        folder: Folder.
        last: Name of the file to delete last: the one by which the rest is recognized, should this process be killed.
    """
    for path in sorted(folder.iterdir(), key=lambda path: path.name == last):
        if path.name in (LOCK, WRITER):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def _lease(folder: Path, remedy: str) -> Iterator[None]:
    lock = _lock_of(folder)

    def acquire() -> None:
        if not _acquire(lock):
            writer = _read_writer(folder)
            if _is_local(writer) or not _outlive(lock, folder, writer):
                raise DfmsdError(f"{folder} is being written by {_describe(writer)}; {remedy}")

    with _held(lock, folder, acquire):
        yield


@contextmanager
def _held(lock: SoftFileLease, folder: Path, acquire: Callable[[], object]) -> Iterator[None]:
    """Acquire a lock in the given way, and release it at the end."""
    try:
        acquire()
    except OSError as error:
        raise DfmsdError(f"out: cannot write to {folder} ({error.strerror}); choose another folder") from error
    try:
        yield
    finally:
        lock.release()


def _lock_of(folder: Path) -> SoftFileLease:
    return SoftFileLease(folder / LOCK, lease_duration=LEASE, heartbeat_interval=HEARTBEAT, poll_interval=POLL / 4)


def _acquire(lock: SoftFileLease, seconds: float = 0) -> bool:
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        return False
    return True


def _outlive(lock: SoftFileLease, folder: Path, writer: dict[str, Any]) -> bool:
    """Wait until the owner renews its lock, or its lease is over and this process has taken it."""
    console.print(f"{folder} was written by {_describe(writer)}: waiting for a sign of life, at most {LEASE:.0f} s")
    renewed = _renewed(folder)
    end = time.monotonic() + LEASE + HEARTBEAT
    while time.monotonic() < end and _renewed(folder) in (renewed, None):
        if _acquire(lock, POLL):
            return True
    return False


def _renewed(folder: Path) -> float | None:
    with suppress(FileNotFoundError):
        return (folder / LOCK).stat().st_mtime
    return None


def _this_process() -> dict[str, Any]:
    return {"process": os.getpid(), "since": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M UTC}", **_machine()}


def _machine() -> dict[str, Any]:
    """Return what two processes share if one can look up the other: containers may have a host name in common."""
    namespace = Path("/proc/self/ns/pid")
    return {"host": socket.gethostname(), "namespace": os.readlink(namespace) if namespace.exists() else None}


def _read_writer(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        content = json.loads((folder / WRITER).read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    return {}


def _is_local(writer: dict[str, Any]) -> bool:
    return all(writer.get(key) == value for key, value in _machine().items())


def _describe(writer: dict[str, Any]) -> str:
    if not {"process", "host", "since"} <= writer.keys():
        return "another process"
    return f"process {writer['process']} on host {writer['host']} since {writer['since']}"
