"""Files written in one step: a reader finds the old file or the new one, never a torn one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dfmsd.errors import DfmsdError


def check_path(where: str, path: str) -> None:
    """Refuse what cannot be the path of a file or folder, whether there is one or not.

    Args:
        where: what the user calls it, such as ``out``.
        path: to look at.

    Raises:
        DfmsdError: it is empty or too long, holds a character that no name has, or is out of reach.
    """
    try:
        if path:
            os.stat(path)
            return
        reason = "it is empty"
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    shown = path if len(path) <= 60 else f"{path[:60]}..."
    raise DfmsdError(f"{where}: {shown!r} is of no use as a path ({reason}); give another")


def is_taken(folder: Path) -> bool:
    """Whether a folder that is to be made new is there already, as a file or with something in it."""
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, which then takes its place; a failure leaves no trace."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step."""
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8", newline=""))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one step."""
    write_text(path, json.dumps(content, indent=2) + "\n")
