"""Table of a ranking."""

from __future__ import annotations

from rich.console import Console
from rich.table import Column, Table

from dfmsd.evaluation.evaluate import percent
from dfmsd.ranking.ranker import RankedTeacher, Ranking

CAPTION = "R2: share of the variance on objects that a linear map explains: teacher from student / student from teacher"


def print_ranking(ranking: Ranking, console: Console) -> None:
    """Print the teachers, the best first, and the probe without a teacher."""
    probed = ranking.alone is not None
    title = f"probes: {ranking.steps} steps, AP on {ranking.images} held-out training images" if probed else None
    table = Table(Column("teacher", overflow="fold"), title=title, caption=CAPTION)
    for name in (*(("probe AP",) if probed else ()), "R2 at the start", *(("R2 trained alone",) if probed else ())):
        table.add_column(name, justify="right")
    table.add_column("student / teacher\nparameters", justify="right")
    table.add_column("teacher's AP", justify="right")
    for row in ranking.teachers:
        table.add_row(*_cells(row))
    if probed:
        table.add_row("none", percent(ranking.alone))
    console.print(table)


def _cells(row: RankedTeacher) -> list[str]:
    start = _both(row.start)
    measured = [start] if row.later is None else [percent(row.probe), start, _both(row.later)]
    return [row.name, *measured, f"{row.parameters:.3f}", percent(row.ap)]


def _both(values: tuple[float | None, float | None]) -> str:
    return " / ".join("-" if value is None else f"{value:.2f}" for value in values)
