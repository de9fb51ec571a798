"""Output folder of one pair: the names of its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PairFolder:
    """The files of one pair.

    Args:
        path: the folder; it need not exist.
    """

    path: Path

    @property
    def results_file(self) -> Path:
        """All results."""
        return self.path / "results.json"

    @property
    def csv_file(self) -> Path:
        """One row per run."""
        return self.path / "compare.csv"

    @property
    def costs_file(self) -> Path:
        """Step time and peak memory of each method."""
        return self.path / "costs.json"

    @property
    def table_file(self) -> Path:
        """The table in Markdown."""
        return self.path / "table.md"

    @property
    def plot_file(self) -> Path:
        """The gains of the methods."""
        return self.path / "plot.png"

    @property
    def report_file(self) -> Path:
        """The report of the pair."""
        return self.path / "report.html"

    def __str__(self) -> str:
        files = (self.results_file, self.csv_file, self.table_file, self.plot_file, self.report_file)
        return f"{self.path}: {', '.join(file.name for file in files)}"
