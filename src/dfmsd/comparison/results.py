"""The files of one pair: what was measured, row by row, and what follows from it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dfmsd.comparison.methods import BASELINE
from dfmsd.comparison.runs import PlannedRun
from dfmsd.comparison.statistics import bootstrap_interval, gap_recovery, paired_differences, sample_deviation
from dfmsd.errors import DfmsdError
from dfmsd.utils.files import write_json, write_text


@dataclass(frozen=True)
class Row:
    """One finished run; metrics are 0..1, costs relative to the baseline's, none where they were not measured."""

    method: str
    seed: int
    epochs: int
    AP: float
    AP50: float | None
    AP75: float | None
    step_time: float | None
    peak_memory: float | None
    variant: bool
    run: str


@dataclass(frozen=True)
class Summary:
    """All seeds of one method; APs are 0..1, ``differences`` are to the baseline with the same seed."""

    method: str
    variant: bool
    seeds: int
    mean: float
    deviation: float | None
    differences: dict[int, float]
    difference: float | None
    interval: tuple[float, float] | None
    gap_recovery: float | None
    step_time: float | None
    peak_memory: float | None


@dataclass
class PairResults:
    """What is known about a pair.

    Attributes:
        pair: its name.
        teachers: reference -> AP in this pipeline, 0..1; T1 first.
        rows: finished runs.
        skipped: method -> why it does not apply.
        failed: run -> why it failed.
        costs: method -> ``step_ms`` and ``peak_bytes``, and both relative to the baseline beside it.
    """

    pair: str
    teachers: dict[str, float]
    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    costs: dict[str, dict[str, float]] = field(default_factory=dict)

    def summaries(self) -> list[Summary]:
        """Sum up each method, the best mean first, ablations and controls after the methods."""
        names = dict.fromkeys(row.method for row in self.rows)
        found = [self._summary([row for row in self.rows if row.method == name]) for name in names]
        return sorted(found, key=lambda summary: (summary.variant, -summary.mean))

    def as_json(self) -> dict[str, Any]:
        """Give the content of ``results.json``."""
        summaries = {summary.method: asdict(summary) for summary in self.summaries()}
        return {**asdict(self), "summary": list(summaries.values())}

    def _summary(self, rows: Sequence[Row]) -> Summary:
        baseline = {row.seed: row.AP for row in self.rows if row.method == BASELINE}
        values = {row.seed: row.AP for row in rows}
        mean = sum(values.values()) / len(values)
        paired = {} if rows[0].method == BASELINE else paired_differences(values, baseline)
        difference = sum(paired.values()) / len(paired) if paired else None
        recovery = None
        if difference is not None:
            start = sum(baseline[seed] for seed in paired) / len(paired)
            recovery = gap_recovery(start + difference, start, max(self.teachers.values()))
        return Summary(
            rows[0].method,
            rows[0].variant,
            len(values),
            mean,
            sample_deviation(list(values.values())),
            paired,
            difference,
            bootstrap_interval(list(paired.values())),
            recovery,
            rows[0].step_time,
            rows[0].peak_memory,
        )


def read_row(run: PlannedRun, costs: Mapping[str, Mapping[str, float]]) -> Row:
    """Read a finished run."""
    metrics = json.loads((run.folder.path / "metrics.json").read_text(encoding="utf-8"))
    cost = costs.get(run.method.name, {})
    return Row(
        method=run.method.name,
        seed=run.config.seed,
        epochs=run.config.epochs,
        AP=metrics["AP"] or 0.0,
        AP50=metrics["AP50"],
        AP75=metrics["AP75"],
        step_time=cost.get("step_time"),
        peak_memory=cost.get("peak_memory"),
        variant=run.method.variant,
        run=str(run.folder.path),
    )


def known_rows(folder: Path) -> list[tuple[str, int]]:
    """Name method and seed of each row of an earlier ``results.json``."""
    path = folder / "results.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return [(row["method"], row["seed"]) for row in rows]


def read_results(folder: Path) -> PairResults:
    """Read what `write_results` wrote.

    Raises:
        DfmsdError: the file is damaged.
    """
    path = folder / "results.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        known.pop("summary")
        return PairResults(**{**known, "rows": [Row(**row) for row in known["rows"]]})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DfmsdError(f"{path} is damaged ({error!r}); run the comparison again, which writes it anew") from error


def write_results(results: PairResults, folder: Path) -> None:
    """Write ``results.json`` and ``compare.csv`` (a row a run), each in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", results.as_json())
    text = io.StringIO()
    table = csv.DictWriter(text, ["pair", *Row.__dataclass_fields__])
    table.writeheader()
    table.writerows({"pair": results.pair, **asdict(row)} for row in results.rows)
    write_text(folder / "compare.csv", text.getvalue())
