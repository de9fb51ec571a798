"""Results of one pair: rows of finished runs, summaries of methods, and their files."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dfmsd.comparison.folder import PairFolder
from dfmsd.comparison.methods import BASELINE
from dfmsd.comparison.runs import PlannedRun
from dfmsd.comparison.statistics import gap_recovery, paired_differences, sample_deviation, student_interval
from dfmsd.engine.runconfig import Deliver
from dfmsd.errors import DfmsdError
from dfmsd.utils.files import write_json, write_text


@dataclass(frozen=True)
class Row:
    """One finished run; metrics are 0..1, costs are relative to the baseline's and None if not measured."""

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
    test_ap: float | None = None


@dataclass(frozen=True)
class Summary:
    """All seeds of one method; APs are 0..1, ``differences`` are to the baseline with the same seed.

    ``test_mean`` and ``test_deviation`` are those on the test split, if the data have one.
    """

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
    test_mean: float | None = None
    test_deviation: float | None = None


@dataclass
class PairResults:
    """Results of one pair.

    Attributes:
        pair: its name.
        teachers: reference -> AP in this pipeline, 0..1, or None if it is unknown; T1 first.
        rows: finished runs.
        skipped: method -> why it does not apply.
        failed: run -> why it failed.
        costs: method -> ``step_ms`` and ``peak_bytes``, and both relative to the baseline's.
        deliver: which weights were measured, see `CompareConfig`.
    """

    pair: str
    teachers: dict[str, float | None]
    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    deliver: Deliver = "last"

    def summaries(self) -> list[Summary]:
        """Summarize each method: highest mean first, ablations and controls after the methods."""
        rows: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            rows[row.method].append(row)
        baseline = {row.seed: row.AP for row in rows.get(BASELINE, [])}
        teacher = self.best_teacher
        summaries = [_summarize(method_rows, baseline, teacher) for method_rows in rows.values()]
        return sorted(summaries, key=lambda summary: (summary.variant, -summary.mean))

    @property
    def best_teacher(self) -> float | None:
        """AP of the best teacher, 0..1; None if none is known."""
        return max((ap for ap in self.teachers.values() if ap is not None), default=None)

    def as_json(self) -> dict[str, Any]:
        """Return the content of ``results.json``."""
        return {**asdict(self), "summary": [asdict(summary) for summary in self.summaries()]}


def read_row(run: PlannedRun, costs: Mapping[str, Mapping[str, float]]) -> Row:
    """Read a finished run.

    Args:
        run: must be finished.
        costs: method -> costs, see `PairResults`.
    """
    metrics = run.folder.read_metrics() or {}
    cost = costs.get(run.method.name, {})
    return Row(
        method=run.method.name,
        seed=run.config.seed,
        epochs=run.config.epochs,
        AP=metrics["AP"],
        AP50=metrics["AP50"],
        AP75=metrics["AP75"],
        step_time=cost.get("step_time"),
        peak_memory=cost.get("peak_memory"),
        variant=run.method.variant,
        run=str(run.folder),
        test_ap=(run.folder.read_test_metrics() or {}).get("AP"),
    )


def known_rows(folder: Path) -> list[tuple[str, int]]:
    """List method and seed of each row of an earlier ``results.json``."""
    path = PairFolder(folder).results_file
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return [(row["method"], row["seed"]) for row in rows]


def read_results(folder: Path) -> PairResults:
    """Read the results written by `write_results`.

    Raises:
        DfmsdError: the file is damaged.
    """
    path = PairFolder(folder).results_file
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content.pop("summary")
        return PairResults(**{**content, "rows": [Row(**row) for row in content["rows"]]})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DfmsdError(f"{path} is damaged ({error!r}); repeat the comparison to write it again") from error


def write_results(results: PairResults, folder: Path) -> None:
    """Write ``results.json`` and ``compare.csv``, each atomically."""
    files = PairFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(files.results_file, results.as_json())
    text = io.StringIO()
    table = csv.DictWriter(text, ["pair", *Row.__dataclass_fields__])
    table.writeheader()
    table.writerows({"pair": results.pair, **asdict(row)} for row in results.rows)
    write_text(files.csv_file, text.getvalue())


def _summarize(rows: Sequence[Row], baseline: Mapping[int, float], teacher: float | None) -> Summary:
    values = {row.seed: row.AP for row in rows}
    tested = [row.test_ap for row in rows if row.test_ap is not None]
    paired = {} if rows[0].method == BASELINE else paired_differences(values, baseline)
    difference = sum(paired.values()) / len(paired) if paired else None
    recovery = None
    if difference is not None and teacher is not None:
        start = sum(baseline[seed] for seed in paired) / len(paired)
        recovery = gap_recovery(start + difference, start, teacher)
    return Summary(
        method=rows[0].method,
        variant=rows[0].variant,
        seeds=len(values),
        mean=sum(values.values()) / len(values),
        deviation=sample_deviation(list(values.values())),
        differences=paired,
        difference=difference,
        interval=student_interval(list(paired.values())),
        gap_recovery=recovery,
        step_time=rows[0].step_time,
        peak_memory=rows[0].peak_memory,
        test_mean=sum(tested) / len(tested) if len(tested) == len(rows) else None,
        test_deviation=sample_deviation(tested),
    )
