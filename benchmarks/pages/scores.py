"""Scores of the comparisons in benchmarks/results, as text for a page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from scipy.stats import wilcoxon

from dfmsd.comparison.methods import BASELINE
from dfmsd.comparison.statistics import gap_recovery, paired_differences, sample_deviation, student_interval

RESULTS = Path(__file__).resolve().parents[1] / "results"


class Scores:
    """AP of the runs of a table, in percent, as text for a page.

    Args:
        runs: row -> seed -> AP, 0..1.
        teachers: reference -> AP, 0..1.
        costs: row -> ``step_time`` and ``peak_memory``, relative to the baseline's; None if they were not measured.
    """

    def __init__(
        self,
        runs: Mapping[str, Mapping[int, float]],
        teachers: Mapping[str, float | None] | None = None,
        costs: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.runs = {row: {seed: 100 * ap for seed, ap in sorted(of_row.items())} for row, of_row in runs.items()}
        self.teachers = {Path(name).stem: 100 * ap for name, ap in (teachers or {}).items() if ap is not None}
        self.costs = costs or {}

    def teacher(self, name: str) -> str:
        """Return the AP of a teacher, by the name of its config or folder."""
        return f"{self.teachers[name]:.1f}"

    def seeds(self, row: str) -> str:
        """Return the AP of every seed, from the first one on."""
        return ", ".join(f"{ap:.1f}" for ap in self.runs[row].values())

    def mean(self, row: str) -> str:
        """Return the mean over the seeds."""
        return f"{mean(self.runs[row].values()):.1f}"

    def spread(self, row: str) -> str:
        """Return the mean and the sample standard deviation, if there are several seeds."""
        deviation = sample_deviation(list(self.runs[row].values()))
        return self.mean(row) + ("" if deviation is None else f" ± {deviation:.1f}")

    def differences(self, row: str, other: str = BASELINE) -> dict[int, float]:
        """Return the differences between two rows, by seed."""
        return paired_differences(self.runs[row], self.runs[other])

    def gains(self, row: str, other: str = BASELINE) -> str:
        """Return the differences between two rows, one for each seed."""
        return ", ".join(f"{value:+.1f}" for value in self.differences(row, other).values())

    def gain(self, row: str, other: str = BASELINE) -> str:
        """Return the mean difference between two rows."""
        return f"{mean(self.differences(row, other).values()):+.1f}"

    def ends(self, row: str, other: str = BASELINE) -> tuple[float, float] | None:
        """Return the ends of Student's 95 % interval of the mean difference; None with fewer than three seeds."""
        return student_interval(list(self.differences(row, other).values()))

    def interval(self, row: str, other: str = BASELINE) -> str:
        """Return the mean difference with Student's 95 % interval; with fewer than three seeds, the differences."""
        ends = self.ends(row, other)
        if ends is None:
            return self.gains(row, other)
        return f"{self.gain(row, other)} [{ends[0]:+.1f}, {ends[1]:+.1f}]"

    def sure(self, row: str, other: str = BASELINE) -> bool:
        """Return whether the interval of the difference is above 0."""
        ends = self.ends(row, other)
        return ends is not None and ends[0] > 0

    def common_means(self, rows: Sequence[str]) -> dict[str, float]:
        """Return the mean of each row over the seeds that all of them have."""
        if not rows:
            return {}
        common = set.intersection(*(set(self.runs[row]) for row in rows))
        return {row: mean(self.runs[row][seed] for seed in common) for row in rows}

    def ranked(self, teacher: str) -> list[str]:
        """Return the methods without options that learn from a teacher such as ``T2``, the highest mean first."""
        rows = [row for row in self.runs if row.partition("@")[2] == teacher and "[" not in row]
        return sorted(rows, key=self.common_means(rows).__getitem__, reverse=True)

    def next_best(self, teacher: str) -> str:
        """Return the best method other than DFMSD that learns from a teacher, or an empty text."""
        return next((row for row in self.ranked(teacher) if not row.startswith("dfmsd")), "")

    def recovered(self, row: str) -> str:
        """Return the share of the best teacher's lead over the baseline that the student gains."""
        paired = self.differences(row)
        start = mean(self.runs[BASELINE][seed] for seed in paired)
        share = gap_recovery(start + mean(paired.values()), start, max(self.teachers.values()))
        assert share is not None
        return f"{round(100 * share)} %"

    def cost(self, row: str, key: str) -> str:
        """Return a cost relative to the baseline's; empty if it was not measured."""
        value = self.costs.get(row, {}).get(key)
        return "" if value is None else f"{value:.2f}"


@cache
def read(name: str) -> Any:
    """Return the content of a JSON file of benchmarks/results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def comparison(name: str) -> Scores:
    """Return the rows of the ``results.json`` of a comparison."""
    result = read(name)
    runs: dict[str, dict[int, float]] = {}
    for row in result["rows"]:
        runs.setdefault(row["method"], {})[row["seed"]] = row["AP"]
    return Scores(runs, result["teachers"], result["costs"])


def peer(name: str) -> Scores:
    """Return the models of a file that ``experiments/peer.py`` writes, named after model, image size and epochs."""
    return Scores({model: {int(seed): run["AP"] for seed, run in runs.items()} for model, runs in read(name).items()})


class Lead(NamedTuple):
    """Rows against other rows with the same table and seed, over several tables."""

    tables: int
    differences: list[float]

    @property
    def line(self) -> str:
        """Cells of a table: the numbers of runs and of those ahead, the mean difference, and p of Wilcoxon's test."""
        ahead = sum(value > 0 for value in self.differences)
        p = wilcoxon(self.differences).pvalue
        shown = "< 0.001" if p < 0.001 else f"{p:.3f}"
        return f"{self.tables} | {ahead} of {len(self.differences)} | {mean(self.differences):+.1f} | {shown}"


def lead(tables: Iterable[Scores], *pairs: tuple[str, str]) -> Lead:
    """Return the lead of rows over others, by seed, in all tables that have both.

    Args:
        tables: the tables.
        pairs: a row and the one that it is compared with.
    """
    found = [
        list(table.differences(row, other).values())
        for table in tables
        for row, other in pairs
        if row in table.runs and other in table.runs
    ]
    return Lead(len(found), [value for values in found for value in values])
