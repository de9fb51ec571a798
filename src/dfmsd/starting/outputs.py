"""The files that ``dfmsd init`` writes, checked before anything slow is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dfmsd.errors import DfmsdError
from dfmsd.utils.files import check_output, check_path

SUFFIXES = (".yaml", ".yml")


def output_files(out: Path, teacher: str | None) -> list[Path]:
    """Return the file of the distillation and, if there is no teacher, that of its training, next to it.

    Args:
        out: File of the distillation.
        teacher: Its reference, or None.
    """
    return [out] if teacher is not None else [out, out.with_name(f"{out.stem}-teacher{out.suffix}")]


def check_files(files: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse files that cannot be written, or that exist.

    Args:
        files: To write.
        overwrite: Existing ones may be replaced.

    Raises:
        DfmsdError: Names the first such file.
    """
    for file in files:
        check_path("out", str(file))
        if file.suffix not in SUFFIXES:
            raise DfmsdError(f"out: {file} is not the name of a YAML file; end it with .yaml")
        check_output(file)
        if file.exists() and not overwrite:
            raise DfmsdError(f"out: {file} exists; pass `overwrite` to replace it, or name another file")
