"""Images in tar files: ``train/00000.tar/x.jpg`` is the member ``x.jpg`` of ``train/00000.tar``.

An index beside each tar file says where its members are, so any image can be read without those before it: shuffling,
mosaics and resumed runs ask for images in any order. A tar file that is not on this machine is read from where
`dfmsd.data.remote` found its index, one request per image.
"""

from __future__ import annotations

import os
from functools import cache
from io import BytesIO
from pathlib import Path

import msgspec

from dfmsd.data import remote
from dfmsd.errors import DfmsdError

SUFFIX = ".tar"


class Member(msgspec.Struct, array_like=True, frozen=True):
    """An image in a tar file.

    Attributes:
        offset: Its first byte in the tar file.
        bytes: Number of bytes.
        height: Of the image, as `dfmsd.data.images.read_size` returns it.
        width: Likewise.
        digest: Hash of its bytes, by which copies are found without reading them.
    """

    offset: int
    bytes: int
    height: int
    width: int
    digest: str


class ShardIndex(msgspec.Struct, frozen=True):
    """Content of a tar file.

    Attributes:
        bytes: Size of the tar file.
        members: Name -> place.
    """

    bytes: int
    members: dict[str, Member]


def index_file(tar: Path) -> Path:
    """Return the path of the index of a tar file."""
    return tar.with_name(f"{tar.name}.json")


@cache
def read_index(tar: Path) -> ShardIndex | None:
    """Return the index of a tar file, or None if it has none.

    Raises:
        DfmsdError: The index is damaged.
    """
    file = index_file(tar)
    try:
        return msgspec.json.decode(file.read_bytes(), type=ShardIndex)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise DfmsdError(
            f"{file}: cannot be read as the index of {tar.name} ({error}); write the shards again"
        ) from error


def find_member(path: str | Path) -> tuple[Path, Member] | None:
    """Return the tar file and the place of an image, or None if the path is that of a file.

    Raises:
        DfmsdError: The tar file has no such member.
    """
    text = os.fspath(path)
    head, found, name = text.partition(SUFFIX + os.sep)
    if not found:
        return None
    tar = Path(head + SUFFIX)
    index = read_index(tar)
    if index is None:
        return None
    if name not in index.members:
        raise DfmsdError(f"{path}: {tar.name} has no member {name}; write the shards again")
    return tar, index.members[name]


def list_members(tar: Path) -> list[str]:
    """Return the names of the images in a tar file; none if it has no index.

    Raises:
        DfmsdError: The tar file should be on this machine, and is not, or does not have the size that its index says.
    """
    index = read_index(tar) if tar.suffix == SUFFIX else None
    if index is None:
        return []
    if remote.origin(tar) is None:
        size = tar.stat().st_size if tar.exists() else 0
        if size != index.bytes:
            raise DfmsdError(f"{tar} has {size} bytes, but {index_file(tar).name} says {index.bytes}; copy it again")
    return list(index.members)


def image_source(path: str | Path) -> str | Path | BytesIO:
    """Return what PIL can open: the path of a file, or the bytes of a member of a tar file.

    Raises:
        DfmsdError: The tar file is missing, too short, or cannot be read.
    """
    member = find_member(path)
    return path if member is None else BytesIO(_read(*member, path))


def read_bytes(path: Path) -> bytes:
    """Read the encoded image from a file, or from a member of a tar file.

    Raises:
        DfmsdError: The tar file is missing, too short, or cannot be read.
        OSError: The file cannot be read.
    """
    member = find_member(path)
    return path.read_bytes() if member is None else _read(*member, path)


def file_stamp(path: str | Path) -> tuple[int, int]:
    """Return time of the last change in ns, and bytes, of an image; those of a member change with its index.

    Raises:
        OSError: There is no such image.
    """
    member = find_member(path)
    if member is None:
        status = os.stat(path)
        return status.st_mtime_ns, status.st_size
    return os.stat(index_file(member[0])).st_mtime_ns, member[1].bytes


def _read(tar: Path, member: Member, path: str | Path) -> bytes:
    try:
        with tar.open("rb") as file:
            file.seek(member.offset)
            content = file.read(member.bytes)
    except FileNotFoundError as error:
        origin = remote.origin(tar)
        if origin is None:
            raise DfmsdError(f"{path}: {tar} is missing; copy it again") from error
        content = remote.read_range(origin, member.offset, member.bytes)
    except OSError as error:
        raise DfmsdError(f"{path}: {tar} cannot be read ({error.strerror or error})") from error
    if len(content) != member.bytes:
        raise DfmsdError(f"{path}: {tar.name} ends within this image; copy it again")
    return content
