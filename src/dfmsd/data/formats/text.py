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
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DfmsdError(f"{file}: cannot be read ({error.strerror}); check its path and permissions") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DfmsdError(f"{file}: it is UTF-16 text; save it as UTF-8")
    if content.startswith(LFS_POINTER):
        raise DfmsdError(f"{file}: it is a pointer of Git LFS, not the file itself; run `git lfs pull` there")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DfmsdError(f"{file}: line {line} is not UTF-8 but perhaps Latin-1 text; save it as UTF-8") from error
