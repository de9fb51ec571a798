"""Contents of a run folder as Python objects; missing files are ``None``."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfmsd.errors import DfmsdError
from dfmsd.runfolder import RunFolder, check_run
from dfmsd.types import LevelSpec

Column = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """Columns of a numeric CSV file; empty cells are NaN."""

    columns: Mapping[str, Column]
    not_finite: Mapping[str, int]
    """Column -> number of cells that contain NaN or infinity; columns without such cells are left out."""

    @property
    def stages(self) -> Column:
        """Stage of each row; 0 for runs without stages."""
        return np.nan_to_num(self.columns["stage"])


@dataclass(frozen=True)
class RunRecord:
    """Contents of one run folder."""

    folder: Path
    metrics: Mapping[str, Any] | None
    student: Mapping[str, Any] | None
    environment: Mapping[str, Any] | None
    config: str | None
    log: Series | None
    epochs: Series | None
    basis: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None
    """Stage -> teacher's level, such as ``p3`` or ``T2.p3`` -> its rotation: the ``reference``, ``student`` or
    ``former``, and the correlation with it ``before`` and ``after``."""
    test_metrics: Mapping[str, Any] | None = None
    """Of the test split, if the data have one."""
    average_metrics: Mapping[str, Any] | None = None
    """Of the averaged weights, if the run chose between them and the last ones."""

    @property
    def weights_bytes(self) -> int | None:
        """Size of the delivered weights file; None if it does not exist."""
        file = RunFolder(self.folder).weights_file
        return file.stat().st_size if file.is_file() else None

    @property
    def levels(self) -> list[LevelSpec]:
        """Pyramid levels of the delivered model; empty if unknown."""
        return [LevelSpec.from_dict(level) for level in (self.student or {}).get("levels", [])]

    @property
    def parameters(self) -> int | None:
        """Number of parameters of the delivered model; None if unknown."""
        in_student = (self.student or {}).get("parameters")
        in_environment = (self.environment or {}).get("parameters", {}).get("student")
        count: int | None = in_environment if in_student is None else in_student
        return count

    @property
    def trained_epochs(self) -> int | None:
        """Number of epochs trained over all stages; None without a log."""
        if self.log is None:
            return None
        return len(set(zip(self.log.stages, self.log.columns["epoch"], strict=True)))

    @property
    def distills(self) -> bool:
        """Whether the log contains more than the detector's own loss."""
        plain = {"loss", "lr", "task"}
        return bool(self.correlations) or any(name.partition("/")[0] not in plain for name in self.terms)

    @property
    def terms(self) -> list[str]:
        """Logged columns except counters and correlations, in file order but with ``lr`` last."""
        counters = {"step", "epoch", "stage"}
        names = self.log.columns if self.log else {}
        terms = [name for name in names if name not in counters and not _is_correlation(name)]
        return sorted(terms, key=lambda name: name == "lr")

    @property
    def correlations(self) -> list[str]:
        """The columns ``pearson/<level>``, or ``T2.pearson/<level>`` in stages with several teachers."""
        return [name for name in (self.log.columns if self.log else {}) if _is_correlation(name)]


def read_run(folder: str | Path, *, log: bool = True) -> RunRecord:
    """Read a run folder.

    Args:
        folder: run folder.
        log: whether to read the log of every step, which can be long.

    Raises:
        DfmsdError: the folder does not exist, or one of its files is damaged.
    """
    run = RunFolder(Path(folder))
    check_run(run.path)
    return RunRecord(
        folder=run.path,
        metrics=run.read_metrics(),
        student=run.read_description(),
        environment=run.read_environment(),
        config=run.config_file.read_text(encoding="utf-8") if run.exists else None,
        log=_read_csv(run.log_file, required=("step", "epoch", "stage")) if log else None,
        epochs=_read_csv(run.epochs_file, required=("epoch", "step", "stage", "AP")),
        basis=run.read_basis(),
        test_metrics=run.read_test_metrics(),
        average_metrics=run.read_average_metrics(),
    )


def _is_correlation(column: str) -> bool:
    return column.partition("/")[0].endswith("pearson")


def _read_csv(path: Path, required: tuple[str, ...]) -> Series | None:
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        names = list(reader.fieldnames or ())
        rows = list(reader)
    missing = [name for name in required if name not in names]
    if missing:
        raise DfmsdError(f"{path} has no column {missing[0]!r}; remove the file, or repeat the run")
    if not rows:
        return None
    cells = {name: [row[name] or "" for row in rows] for name in names}
    columns = {_present(name): np.array([_number(cell, path, name) for cell in cells[name]]) for name in names}
    not_finite = {name: sum(cell != "" and not math.isfinite(float(cell)) for cell in cells[name]) for name in names}
    return Series(columns, {name: count for name, count in not_finite.items() if count})


def _present(column: str) -> str:
    """Return today's name of a column: ``balance/loss`` of earlier versions is ``balance``."""
    return column.removesuffix("/loss") if column.endswith("balance/loss") else column


def _number(cell: str, path: Path, column: str) -> float:
    """Convert a cell; the last row of a killed run may be cut short, so its missing cells are empty."""
    try:
        return float(cell) if cell else math.nan
    except ValueError as error:
        raise DfmsdError(f"{path}, column {column!r}: {cell!r} is not a number; remove that row") from error
