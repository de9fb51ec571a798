"""What a run folder says, read without judging it: a file that is absent is ``None``."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfmsd.errors import DfmsdError
from dfmsd.types import LevelSpec

Column = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """The columns of a CSV file of numbers; an empty cell is NaN."""

    columns: Mapping[str, Column]
    not_finite: Mapping[str, int]
    """Column -> how many cells were *written* as NaN or infinite; columns without such a cell are left out."""

    @property
    def stages(self) -> Column:
        """Stage of each row; 0 where the run has no stages."""
        return np.nan_to_num(self.columns["stage"])


@dataclass(frozen=True)
class RunRecord:
    """One run folder."""

    folder: Path
    metrics: Mapping[str, Any] | None
    student: Mapping[str, Any] | None
    environment: Mapping[str, Any] | None
    config: str | None
    log: Series | None
    epochs: Series | None
    balance: Mapping[str, Mapping[str, float]] | None = None
    """Stage -> name of a term, or of a whole loss -> the factor that the automatic balance chose."""

    @property
    def weights_bytes(self) -> int | None:
        """Size of the delivered weights file, where there is one."""
        file = self.folder / "student.safetensors"
        return file.stat().st_size if file.is_file() else None

    @property
    def levels(self) -> list[LevelSpec]:
        """The pyramid of the delivered model, as far as the folder tells."""
        return [LevelSpec(**level) for level in (self.student or {}).get("levels", [])]

    @property
    def parameters(self) -> int | None:
        """How many parameters the delivered model has, where the folder says so."""
        in_student = (self.student or {}).get("parameters")
        in_environment = (self.environment or {}).get("parameters", {}).get("student")
        count: int | None = in_environment if in_student is None else in_student
        return count

    @property
    def trained_epochs(self) -> int | None:
        """How many epochs have been trained, all stages together."""
        if self.log is None:
            return None
        return len(set(zip(self.log.stages, self.log.columns["epoch"], strict=True)))

    @property
    def distils(self) -> bool:
        """Whether anything beside the detector's own loss was logged."""
        own = {"loss", "lr", "task"}
        return bool(self.correlations) or any(name.partition("/")[0] not in own for name in self.terms)

    @property
    def terms(self) -> list[str]:
        """The logged columns that are neither a counter nor a correlation, in the file's order but ``lr`` last."""
        other = {"step", "epoch", "stage"}
        names = self.log.columns if self.log else {}
        terms = [name for name in names if name not in other and not _is_correlation(name)]
        return sorted(terms, key=lambda name: name == "lr")

    @property
    def correlations(self) -> list[str]:
        """The columns ``pearson/<level>``, and ``T2.pearson/<level>`` where a stage has several teachers."""
        return [name for name in (self.log.columns if self.log else {}) if _is_correlation(name)]


def _is_correlation(column: str) -> bool:
    return column.partition("/")[0].endswith("pearson")


def read_run(folder: Path) -> RunRecord:
    """Read a run folder.

    Raises:
        DfmsdError: there is no such folder, or a file in it is damaged.
    """
    if not folder.is_dir():
        raise DfmsdError(
            f"no run folder {folder}: give the folder that `dfmsd train` or `dfmsd distill` wrote (`out:`)"
        )
    config = folder / "config.yaml"
    return RunRecord(
        folder=folder,
        metrics=_read_json(folder / "metrics.json"),
        student=_read_json(folder / "student.json"),
        environment=_read_json(folder / "environment.json"),
        config=config.read_text(encoding="utf-8") if config.is_file() else None,
        log=_read_csv(folder / "log.csv", required=("step", "epoch", "stage")),
        epochs=_read_csv(folder / "epochs.csv", required=("epoch", "step", "stage", "AP")),
        balance=_read_json(folder / "balance.json"),
    )


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DfmsdError(f"{path} is damaged ({error}): remove it, or run again") from error
    if not isinstance(content, dict):
        raise DfmsdError(f"{path} holds a {type(content).__name__}, expected an object: remove it, or run again")
    return content


def _read_csv(path: Path, required: tuple[str, ...]) -> Series | None:
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        names = list(reader.fieldnames or ())
        rows = list(reader)
    missing = [name for name in required if name not in names]
    if missing:
        raise DfmsdError(f"{path} lacks the column {missing[0]!r}: remove it, or run again")
    if not rows:
        return None
    cells = {name: [row[name] or "" for row in rows] for name in names}
    columns = {name: np.array([_number(cell, path, name) for cell in cells[name]]) for name in names}
    written = {name: sum(cell != "" and not math.isfinite(float(cell)) for cell in cells[name]) for name in names}
    return Series(columns, {name: count for name, count in written.items() if count})


def _number(cell: str, path: Path, column: str) -> float:
    """A cut last row (a killed run) has fewer cells: they come as empty ones."""
    try:
        return float(cell) if cell else math.nan
    except ValueError as error:
        raise DfmsdError(f"{path}, column {column!r}: {cell!r} is no number; remove that row") from error
