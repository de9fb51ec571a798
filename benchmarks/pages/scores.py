"""Scores of the comparisons in benchmarks/results, as text for a page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
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

    def ap(self, row: str, seed: int = 0) -> str:
        """Return the AP of one seed."""
        return f"{self.runs[row][seed]:.1f}"

    def seeds(self, row: str, separator: str = ", ") -> str:
        """Return the AP of every seed, from the first one on."""
        return separator.join(f"{ap:.1f}" for ap in self.runs[row].values())

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

    def interval(self, row: str, other: str = BASELINE) -> str:
        """Return the mean difference with Student's 95 % interval; with fewer than three seeds, the differences."""
        ends = student_interval(list(self.differences(row, other).values()))
        if ends is None:
            return self.gains(row, other)
        return f"{self.gain(row, other)} [{ends[0]:+.1f}, {ends[1]:+.1f}]"

    def recovered(self, row: str) -> str:
        """Return the share of the best teacher's lead over the baseline that the student gains."""
        paired = self.differences(row)
        start = mean(self.runs[BASELINE][seed] for seed in paired)
        share = gap_recovery(start + mean(paired.values()), start, max(self.teachers.values()))
        assert share is not None
        return f"{100 * share:.0f} %"

    def cost(self, row: str, key: str) -> str:
        """Return a cost relative to the baseline's; empty if it was not measured."""
        value = self.costs.get(row, {}).get(key)
        return "" if value is None else f"{value:.2f}"

    def joined(self, name: str, other: Scores, row: str) -> Scores:
        """Return the table with a row of another one, to compare them."""
        joined = Scores({}, None, self.costs)
        joined.runs, joined.teachers = {**self.runs, name: other.runs[row]}, self.teachers
        return joined

    def line(self, row: str, columns: str, name: str | None = None, *, bold: bool = False) -> str:
        """Return a line of a table.

        Args:
            row: key of the row.
            columns: names of columns: ``seeds`` (a cell each), ``list``, ``mean``, ``spread``, ``gain``, ``gains``,
                ``recovered``, ``step`` and ``memory``.
            name: text of the first cell; None for the row's key.
            bold: set it in bold type.
        """
        cells = [f"**{name or row}**" if bold else name or row]
        every = sorted({seed for of_row in self.runs.values() for seed in of_row})
        for column in columns.split():
            if column == "seeds":
                cells += [self.ap(row, seed) if seed in self.runs[row] else "" for seed in every]
            else:
                cells.append(self._cell(row, column))
        return f"| {' | '.join(cells)} |".replace("  ", " ")

    def _cell(self, row: str, column: str) -> str:
        texts = {"list": self.seeds, "mean": self.mean, "spread": self.spread}
        if column in texts:
            return texts[column](row)
        if column in ("step", "memory"):
            return self.cost(row, {"step": "step_time", "memory": "peak_memory"}[column])
        if row == BASELINE:
            return ""
        return {"gain": self.interval, "gains": self.gains, "recovered": self.recovered}[column](row)


@cache
def read(name: str) -> Any:
    """Return the content of a JSON file of benchmarks/results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def comparison(*names: str) -> Scores:
    """Return the rows of one or more ``results.json`` of comparisons; a later file replaces equal rows."""
    return scores(*map(read, names))


def scores(*results: Mapping[str, Any]) -> Scores:
    """Return the rows of comparisons, given as the content of their ``results.json``."""
    runs: dict[str, dict[int, float]] = {}
    teachers: dict[str, float | None] = {}
    costs: dict[str, Any] = {}
    for result in results:
        fresh: dict[str, dict[int, float]] = {}
        for row in result["rows"]:
            fresh.setdefault(row["method"], {})[row["seed"]] = row["AP"]
            costs[row["method"]] = row
        runs |= fresh
        teachers |= result["teachers"]
    return Scores(runs, teachers, costs)


def by_seed(rows: Mapping[str, Mapping[str, float]]) -> Scores:
    """Return the rows of a file with row -> seed -> AP."""
    return Scores({row: {int(seed): ap for seed, ap in of_row.items()} for row, of_row in rows.items()})


class Lead(NamedTuple):
    """Our runs against those of a method with the same pair and seed, over several pairs."""

    pairs: int
    differences: list[float]

    @property
    def runs(self) -> int:
        """Number of pairs of runs."""
        return len(self.differences)

    @property
    def ahead(self) -> int:
        """Number of those that ours lead."""
        return sum(value > 0 for value in self.differences)

    @property
    def line(self) -> str:
        """Cells of a table: the numbers, the mean difference, and p of Wilcoxon's signed-rank test."""
        p = wilcoxon(self.differences).pvalue
        shown = "< 0.001" if p < 0.001 else f"{p:.3f}"
        return f"{self.pairs} | {self.runs} | {self.ahead} | {mean(self.differences):+.1f} | {shown}"

    def __str__(self) -> str:
        """Format as a part of a sentence."""
        return f"{self.ahead} of {self.runs}"


def over_pairs(method: str, pairs: Iterable[Iterable[tuple[str, str]]]) -> Lead:
    """Return our lead over a method.

    Args:
        method: row of the others.
        pairs: for each pair its files and our row there, of which the first file with the method counts.
    """
    differences: list[float] = []
    count = 0
    for files in pairs:
        tables = ((comparison(name), ours) for name, ours in files)
        for table, ours in tables:
            if method in table.runs:
                differences += table.differences(ours, method).values()
                count += 1
                break
    return Lead(count, differences)


def unsigned(text: str) -> str:
    """Return a text without plus and minus signs, for sentences that say the direction in words."""
    return re.sub(r"[+-](?=\d)", "", text)
