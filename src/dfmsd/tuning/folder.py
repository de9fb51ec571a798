"""Output folder of a search: the names of its files and folders."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dfmsd.runfolder import RunFolder


@dataclass(frozen=True)
class SearchFolder:
    """The files of a search, whose processes all share them.

    Args:
        path: the folder; it need not exist.
    """

    path: Path

    @property
    def database(self) -> Path:
        """The study, unless another storage is given."""
        return self.path / "study.db"

    @property
    def table_file(self) -> Path:
        """One row per trial."""
        return self.path / "study.csv"

    @property
    def report_file(self) -> Path:
        """The report."""
        return self.path / "report.html"

    @property
    def result_file(self) -> Path:
        """What the search has found, as JSON."""
        return self.path / "result.json"

    @property
    def best_file(self) -> Path:
        """The best config, for `dfmsd distill`."""
        return self.path / "best.yaml"

    @property
    def teachers(self) -> Path:
        """Run folders of near teachers that the trials share."""
        return self.path / "teachers"

    def trial(self, number: int) -> Path:
        """Run folder of a trial."""
        return self.path / "trials" / f"{number:04d}"

    def repeat(self, name: str, seed: int) -> Path:
        """Run folder of a configuration with a seed, on the held-out images."""
        return self.path / "repeats" / f"{name.replace(' ', '-')}-seed-{seed}"

    def final(self, name: str) -> Path:
        """Run folder of a configuration that is trained on all training images."""
        return self.path / "final" / name.replace(" ", "-")

    def runs(self, *kinds: str) -> list[RunFolder]:
        """Return the folders of runs that exist.

        Args:
            kinds: ``trials``, ``repeats``, ``teachers``, ``final``, or ``*`` for all of them.
        """
        found = (RunFolder(path) for kind in kinds for path in sorted(self.path.glob(f"{kind}/*")))
        return [run for run in found if run.exists]

    @property
    def identity_file(self) -> Path:
        """Random number that the study knows, too."""
        return self.path / ".tune" / "identity"

    def lock(self, name: str) -> Path:
        """Folder whose lock one process at a time holds."""
        return self.path / ".tune" / name

    def process(self, name: str) -> Path:
        """Folder that a process holds as long as it lives."""
        return self.path / ".tune" / "processes" / name

    def remove_empty(self) -> None:
        """Remove the folder and those of its locks, as far as they are empty."""
        for path in (self.lock("opening"), self.lock("asking"), self.identity_file.parent, self.path):
            with suppress(OSError):
                path.rmdir()

    def __str__(self) -> str:
        files = (self.best_file, self.report_file, self.result_file, self.table_file)
        return f"{self.path}: {', '.join(file.name for file in files)}"
