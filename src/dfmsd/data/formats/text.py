"""Text files in UTF-8."""

from __future__ import annotations

import codecs
from pathlib import Path

from dfmsd.errors import DfmsdError

LFS_POINTER = b"version https://git-lfs.github.com/"


def read_text(file: Path) -> str:
    """Read a text file; a byte order mark, which some editors write, is left out.

    Raises:
        DfmsdError: It cannot be read, or has another encoding, which the message names.
    """
    return to_text(read_bytes(file), file)


def read_bytes(file: Path) -> bytes:
    """Read the bytes of a text file, without a byte order mark.

    Raises:
        DfmsdError: It cannot be read, or is no text in UTF-8.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DfmsdError(f"{file}: cannot be read ({error.strerror}); check its path and permissions") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DfmsdError(f"{file}: it is UTF-16 text; save it as UTF-8")
    if content.startswith(LFS_POINTER):
        raise DfmsdError(f"{file}: it is a pointer of Git LFS, not the file itself; run `git lfs pull` there")
    return content.removeprefix(codecs.BOM_UTF8)


def to_text(content: bytes, file: Path) -> str:
    """Decode the bytes of a text file.

    Raises:
        DfmsdError: It has another encoding than UTF-8, which the message names.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DfmsdError(f"{file}: line {line} is not UTF-8 but perhaps Latin-1 text; save it as UTF-8") from error
