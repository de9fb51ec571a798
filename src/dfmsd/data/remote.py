"""Data sets on servers and in object stores: annotations and indexes are copied, images are read one by one.

Any URL that ``fsspec`` can open will do: ``https://``, ``s3://`` with ``s3fs`` installed, ``gs://`` with ``gcsfs``.
Only data sets written by ``dfmsd convert --to shards`` can be read like this: their ``shards.json`` lists what to copy.
"""

from __future__ import annotations

import hashlib
import time
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import msgspec
from filelock import FileLock

from dfmsd.errors import DfmsdError
from dfmsd.utils.cachedir import cache_root
from dfmsd.utils.files import new_folder

MANIFEST = "shards.json"
"""Lists the annotations and indexes of a sharded data set, relative to its folder."""
ORIGIN = "shards.url"
"""Holds the URL that a copied folder came from."""
ATTEMPTS = 4
"""How often a request is made before it counts as failed; the waiting time doubles from one second on."""


class Manifest(msgspec.Struct):
    """Content of ``shards.json``.

    Attributes:
        files: Files besides the tar files -> `digest` of their content.
    """

    files: dict[str, str]


def digest(content: bytes) -> str:
    """Return the hash by which a file is recognized."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def is_url(root: str | Path) -> bool:
    """Return whether a data set is on a server."""
    return "://" in str(root)


def local_root(root: str | Path) -> Path:
    """Return the folder of a data set; that of a URL is a copy without the tar files, made anew when it has changed.

    Raises:
        DfmsdError: The server cannot be reached, or has no ``shards.json`` there.
    """
    if not is_url(root):
        return Path(root).expanduser()
    url = str(root).rstrip("/")
    content = _read(f"{url}/{MANIFEST}")
    try:
        files = msgspec.json.decode(content, type=Manifest).files
    except msgspec.MsgspecError as error:
        raise DfmsdError(
            f"data.root: {url}/{MANIFEST} is not what `dfmsd convert --to shards` writes ({error})"
        ) from error
    folder = cache_root() / "shards" / digest(url.encode() + content)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            with new_folder(folder, "data.root") as new:
                for file, expected in files.items():
                    _copy(url, file, expected, new)
                (new / MANIFEST).write_bytes(content)
                (new / ORIGIN).write_text(url)
    return folder


@cache
def origin(tar: Path) -> str | None:
    """Return the URL of a tar file that was not copied, or None if its folder is not a copy."""
    folder = next((parent for parent in tar.parents if (parent / ORIGIN).is_file()), None)
    return None if folder is None else f"{(folder / ORIGIN).read_text()}/{tar.relative_to(folder).as_posix()}"


def read_range(url: str, start: int, length: int) -> bytes:
    """Read a part of a file.

    Args:
        url: Of the file.
        start: First byte.
        length: Number of bytes.

    Raises:
        DfmsdError: The server cannot be reached, has no such file, or does not send parts of files.
    """
    content = _read(url, start=start, end=start + length)
    if len(content) > length:
        raise DfmsdError(f"{url}: the server sends whole files only; use one that answers range requests")
    return content


def _copy(url: str, file: str, expected: str, folder: Path) -> None:
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts:
        raise DfmsdError(f"data.root: {url}/{MANIFEST} lists {file}, which lies outside the data set")
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    content = _read(f"{url}/{file}")
    if digest(content) != expected:
        raise DfmsdError(f"{url}/{file}: is not the file that {MANIFEST} lists; upload the data set again")
    (folder / path).write_bytes(content)


def _read(url: str, attempt: int = 1, **part: int) -> bytes:
    """Read a file, or a part of it, trying again when the server does not answer."""
    try:
        system, path = fsspec.core.url_to_fs(url)
        content: Any = system.cat_file(path, **part)
        return bytes(content)
    except (FileNotFoundError, ImportError, ValueError) as error:  # will not change
        raise DfmsdError(f"{url}: {_reason(error)}") from error
    except Exception as error:  # every kind of store raises its own
        if attempt == ATTEMPTS:
            raise DfmsdError(f"{url}: cannot be read after {ATTEMPTS} attempts ({_reason(error)})") from error
    time.sleep(2 ** (attempt - 1))
    return _read(url, attempt + 1, **part)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file; a data set on a server is a folder written by `dfmsd convert --to shards`"
    return str(error) or type(error).__name__
