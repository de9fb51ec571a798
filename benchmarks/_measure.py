"""Measuring and reporting of the benchmarks: interleaved timing, peak tensor bytes, JSON and tables."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from dfmsd.comparison.step_cost import peak_bytes
from dfmsd.engine.environment import describe_environment
from dfmsd.utils.files import write_json

__all__ = ["Median", "interleaved_medians", "parse_arguments", "peak_bytes", "print_rows", "write_results"]

RESULTS = Path(__file__).parent / "results"


class Median(NamedTuple):
    """Median duration of one call, in milliseconds."""

    wall: float
    cpu: float
    """CPU time of the process, which other programs on the machine disturb least."""


def interleaved_medians(calls: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 2) -> dict[str, Median]:
    """Time calls in turns: one of each per round, starting with a different one in every round.

    A slow phase of the machine then affects all of them equally.
    """
    names = list(calls)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for round_ in range(warmup + repeats):
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            wall, cpu = time.perf_counter(), time.process_time()
            calls[name]()
            elapsed = (time.perf_counter() - wall, time.process_time() - cpu)
            if round_ >= warmup:
                times[name].append(elapsed)
    return {
        name: Median(*(1e3 * statistics.median(column) for column in zip(*rows, strict=True)))
        for name, rows in times.items()
    }


def parse_arguments(description: str | None, name: str, repeats: int, **extra: Any) -> argparse.Namespace:
    """Parse ``--repeats``, ``--out`` and the options ``extra``, given as name and default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help="timed rounds (default: %(default)s)")
    for option, default in extra.items():
        parser.add_argument(f"--{option}", type=type(default), default=default, help="default: %(default)s")
    out = RESULTS / f"{name}.json"
    parser.add_argument("--out", type=Path, default=out, help="JSON file (default: %(default)s)")
    return parser.parse_args()


def write_results(file: Path, results: Mapping[str, Any]) -> None:
    """Write results as JSON, with the machine and the number of threads."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {**results, "threads": torch.get_num_threads(), "environment": describe_environment()})
    print(file)


def print_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows with the same keys as a table, floats with four significant digits."""
    table = Table(title=title)
    for heading in rows[0]:
        table.add_column(heading.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=140).print(table)
