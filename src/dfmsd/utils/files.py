"""Paths, and files that are written atomically."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import TYPE_CHECKING, Any

from dfmsd.errors import DfmsdError

if TYPE_CHECKING:
    from torch import Tensor

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the system errors that mean that there is no room for a file."""


def plain_path(path: str | Path) -> Path:
    """Return an absolute path without ``..``; unlike ``resolve``, it does not follow links."""
    return Path(os.path.abspath(path))


def check_path(name: str, path: str) -> None:
    """Check that a string can be the path of a file or folder, which need not exist.

    Args:
        name: Name of the setting, such as ``out``, for the message.
        path: Path to check.

    Raises:
        DfmsdError: It is empty, too long or inaccessible, or contains an invalid character.
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
    raise DfmsdError(f"{name}: {shown!r} cannot be used as a path ({reason}); give another")


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or was left by another system: ``._a.jpg``, ``__MACOSX``, ``@eaDir``.

    Args:
        name: Its name, without the folders that it is in.
    """
    return name.startswith((".", "__MACOSX", "@eaDir"))


def is_taken(folder: Path) -> bool:
    """Return whether a new folder cannot be created at a path: it is a file, or a folder that is not empty."""
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def refuse_others_files(files: Iterable[Path], written_last: Path, name: str = "out") -> None:
    """Refuse to replace files, unless an earlier call has written them: it ends with a file that is then there.

    Args:
        files: Files to write.
        written_last: The file that each call writes last.
        name: Name of the setting, such as ``out``, for the message.

    Raises:
        DfmsdError: A file is there that is not known to be of an earlier call.
    """
    found = None if written_last.exists() else next((file for file in files if file.exists()), None)
    if found is not None:
        raise DfmsdError(
            f"`{name}`: {found} exists, and {written_last.parent} holds no {written_last.name} of an earlier call; "
            "choose another folder, or empty it"
        )


@contextmanager
def new_folder(path: Path, name: str = "out") -> Iterator[Path]:
    """Create a folder in one step: yield an empty one beside it, which takes its place unless an error is raised.

    Args:
        path: Folder, which does not exist or is empty.
        name: Name of the setting, such as ``out``, for the message.

    Raises:
        DfmsdError: It is not empty, or no longer empty at the end, or cannot be written.
    """
    if is_taken(path):
        raise DfmsdError(f"`{name}`: {path} exists and is not an empty folder; name a new one")
    check_writable(path, name)
    missing = _missing(path.parent)
    make_folder(path.parent, name)
    try:
        with TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as parent:
            complete = Path(parent, "complete")
            complete.mkdir()
            yield complete
            _move(complete, path, name)
    except BaseException:
        _remove(missing)
        raise


def make_folder(path: Path, name: str = "out") -> None:
    """Create a folder and those above it, unless it exists.

    Args:
        path: Folder.
        name: Name of the setting, such as ``out``, for the message.

    Raises:
        DfmsdError: It cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DfmsdError(f"{name}: cannot write to {path} ({error.strerror}); choose another folder") from error


def check_writable(folder: Path, name: str = "out") -> None:
    """Check that files can be written into a folder, which need not exist, and leave nothing behind.

    Args:
        folder: Folder.
        name: Name of the setting, such as ``out``, for the message.

    Raises:
        DfmsdError: It cannot be created or written.
    """
    missing = _missing(folder)
    try:
        make_folder(folder, name)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DfmsdError(f"{name}: cannot write to {folder} ({error.strerror}); choose another folder") from error
    finally:
        _remove(missing)


def _move(folder: Path, target: Path, name: str) -> None:
    try:
        if target.exists():
            target.rmdir()
        folder.rename(target)
    except OSError as error:
        raise DfmsdError(f"`{name}`: {target} was written to in the meantime; name a new folder") from error


def _missing(folder: Path) -> list[Path]:
    """Return the folder and those above it that do not exist, the innermost first."""
    return list(takewhile(lambda place: not place.exists(), (folder, *folder.parents)))


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # another run has written there
            folder.rmdir()


def check_output(file: Path, name: str = "out") -> None:
    """Check that a file can be written, which need not exist, and leave nothing behind.

    Args:
        file: File.
        name: Name of the setting, such as ``out``, for the message.

    Raises:
        DfmsdError: It is a folder, or cannot be written.
    """
    if file.is_dir():
        raise DfmsdError(f"{name}: {file} is a folder; name a file in it")
    check_writable(file.parent, name)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Replace a file in one step, so that readers find either the old or the new content; failures leave no trace.

    Args:
        path: File to replace or create.
        write: Writes the content to the temporary path that it is given.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8", newline=""))


def to_json(content: Any) -> str:
    """Return the text of a JSON file."""
    return json.dumps(content, indent=2) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, to_json(content))


def write_output(file: Path, text: str) -> None:
    """Write a file that the user has named, atomically, and create the folders above it.

    `check_output` tells before the work whether this will succeed.
    """
    make_folder(file.parent)
    write_text(file, text)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file atomically, with the permissions of any other new file.

    safetensors itself creates files that only their owner can read.
    """
    from safetensors.torch import save_file  # here, since torch takes seconds to import

    def write(file: Path) -> None:
        file.touch()
        mode = file.stat().st_mode
        save_file(tensors, file)
        file.chmod(mode)

    write_atomically(path, write)
