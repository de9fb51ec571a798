"""Tables of a pair's results: Markdown, terminal and HTML, with a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from dfmsd.comparison.folder import PairFolder
from dfmsd.comparison.methods import BASELINE
from dfmsd.comparison.page import result_sections
from dfmsd.comparison.results import PairResults, Summary, read_results
from dfmsd.comparison.statistics import MIN_SEEDS
from dfmsd.engine.runconfig import Deliver
from dfmsd.evaluation.evaluate import percent
from dfmsd.reporting import Table, write_page
from dfmsd.utils.files import write_atomically, write_text

STYLE: dict[Any, Any] = {
    "axes.edgecolor": "#8a8f98",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.color": "#e6e8eb",
    "text.parse_math": False,  # names may contain dollar signs
}
HEADER = ("method", "seeds", "AP", "gain [95 %]", "gap recovered", "step time", "peak memory")
TEST = "test AP"
"""Column for data with a test split; the other APs are those of val, which chose between methods."""
DELIVERED: dict[Deliver, str] = {
    "last": "the last epoch",
    "ema": "the averaged weights",
    "auto": "the better of the last and the averaged weights, chosen on the validation images",
    "best": "the best epoch, chosen on the validation images",
}
"""Whose AP the tables show."""


def table_header(results: PairResults) -> tuple[str, ...]:
    """Return the names of the columns."""
    return (*HEADER, TEST) if _tested(results) else HEADER


def table_rows(results: PairResults) -> list[tuple[str, ...]]:
    """Return the rows: teachers, methods, then ablations and controls."""
    summaries = results.summaries()
    rows: list[tuple[str, ...]] = [
        (f"T{number}: {name}", "", percent(ap), "", "", "", "")
        for number, (name, ap) in enumerate(results.teachers.items(), 1)
    ]
    rows += [_row(summary) for summary in summaries]
    if not _tested(results):
        return rows
    cells = ["" for _ in results.teachers] + [_mean(one.test_mean, one.test_deviation) for one in summaries]
    return [(*row, cell) for row, cell in zip(rows, cells, strict=True)]


def _tested(results: PairResults) -> bool:
    return any(row.test_ap is not None for row in results.rows)


def missing_rows(results: PairResults) -> list[tuple[str, ...]]:
    """Return a row with the reason for each skipped method and failed run."""
    reasons = {name: f"does not apply: {reason}" for name, reason in results.skipped.items()}
    reasons |= {run: f"failed: {reason}" for run, reason in results.failed.items()}
    rest = [""] * (len(table_header(results)) - 3)
    return [(name, "0", reason, *rest) for name, reason in reasons.items()]


def notes(results: PairResults) -> list[str]:
    """Explain how to read the table."""
    lines = [
        f"AP: COCO AP of {DELIVERED[results.deliver]}, in percent; mean and sample standard deviation over the seeds.",
        "Gain: mean difference to the baseline with the same seed, with Student's 95 % interval of the mean (with "
        f"fewer than {MIN_SEEDS} seeds, only the differences).",
        "Gap recovered: gain divided by the strongest teacher's lead over the baseline. Step time and peak memory: "
        "relative to the baseline.",
    ]
    if _tested(results):
        lines.append("Test AP: the same on the test split, which has chosen nothing.")
    budgets = sorted({row.epochs for row in results.rows})
    return [*lines, f"Budget: {', '.join(map(str, budgets))} epochs for every method, over all stages."]


def write_tables(results: PairResults, folder: Path) -> None:
    """Write ``table.md``, ``plot.png`` and ``report.html``, each atomically."""
    files = PairFolder(folder)
    rows = [*table_rows(results), *missing_rows(results)]
    header = table_header(results)
    lines = [_markdown(header), _markdown(["---", *["---:"] * (len(header) - 1)]), *map(_markdown, rows)]
    text = [f"# {results.pair}", "", *lines, "", *(f"- {note}" for note in notes(results)), ""]
    write_text(files.table_file, "\n".join(text))
    gains = [summary for summary in results.summaries() if summary.difference is not None]
    if gains:
        write_atomically(files.plot_file, lambda file: _draw(gains).savefig(file, format="png", dpi=150))
    sections = result_sections(results, Table(header, rows), notes(results), folder)
    write_page(files.report_file, f"Comparison: {results.pair}", sections)


def rewrite_tables(folder: Path) -> list[Path]:
    """Write the tables and reports of a comparison again, from its results.

    Args:
        folder: of one pair or of a whole comparison.

    Returns:
        The reports; empty for any other folder.

    Raises:
        DfmsdError: a pair's ``results.json`` is damaged.
    """
    file = PairFolder(folder).results_file
    pairs = [folder] if file.is_file() else [result.parent for result in sorted(folder.glob(f"*/{file.name}"))]
    for pair in pairs:
        write_tables(read_results(pair), pair)
    return [PairFolder(pair).report_file for pair in pairs]


def print_table(results: PairResults, console: Console) -> None:
    """Print the table, and below it the skipped methods and failed runs."""
    table = RichTable(title=results.pair)
    for index, heading in enumerate(table_header(results)):
        table.add_column(Text(heading), justify="right" if index else "left", overflow="fold")
    for row in table_rows(results):
        table.add_row(*map(Text, row))
    console.print(table)
    for name, _, reason, *_ in missing_rows(results):
        console.print(f"{name} {reason}", highlight=False, markup=False)


def _row(summary: Summary) -> tuple[str, ...]:
    recovery = "" if summary.gap_recovery is None else f"{summary.gap_recovery:.0%}"
    name = f"{summary.method} (baseline)" if summary.method == BASELINE else summary.method
    costs = ("" if cost is None else f"{cost:.2f}" for cost in (summary.step_time, summary.peak_memory))
    return (name, str(summary.seeds), _mean(summary.mean, summary.deviation), _gain(summary), recovery, *costs)


def _mean(mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return ""
    return f"{100 * mean:.1f}{'' if deviation is None else f' ± {100 * deviation:.1f}'}"


def _gain(summary: Summary) -> str:
    if summary.difference is None:
        return ""
    if summary.interval is None:
        return ", ".join(f"{100 * value:+.1f}" for value in summary.differences.values())
    low, high = (100 * end for end in summary.interval)
    return f"{100 * summary.difference:+.1f} [{low:+.1f}, {high:+.1f}]"


def _markdown(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _draw(gains: Sequence[Summary]) -> Figure:
    """Draw the paired gains of each method: dots for seeds, a bar for the mean, a line for the interval."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 1.2 + 0.32 * len(gains)), layout="constrained")
        ax = figure.subplots()
        for place, summary in enumerate(reversed(gains)):
            color = "#8a8f98" if summary.variant else "#0072b2"
            assert summary.difference is not None
            ax.barh(place, 100 * summary.difference, height=0.6, color=color, alpha=0.35)
            if summary.interval is not None:
                low, high = (100 * end for end in summary.interval)
                ax.plot([low, high], [place, place], color=color, linewidth=2, linestyle="-")
            dots = [100 * value for value in summary.differences.values()]
            ax.plot(dots, [place] * len(dots), linestyle="none", marker="o", markersize=4, color=color)
        ax.axvline(0, color="#444444", linewidth=0.8, linestyle="-")
        ax.set_yticks(range(len(gains)), [summary.method for summary in reversed(gains)])
        ax.set_xlabel("AP gain over the baseline with the same seed; gray: ablations and controls")
        ax.grid(visible=False, axis="y")
    return figure
