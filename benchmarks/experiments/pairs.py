"""Does any student lose by its teacher? Every student with every teacher of a comparison, everything else by default.

    python benchmarks/experiments/pairs.py benchmarks/tables/digits-pairs.yaml --students retinanet gfl ssdlite

Repeats the comparison with other architectures of the student, and writes the AP of all runs to
``benchmarks/results/pairs-<data>.json`` after each. Finished runs are used again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from _runs import RESULTS
from rich.console import Console
from rich.table import Table

from dfmsd.comparison.config import CompareConfig
from dfmsd.comparison.methods import BASELINE
from dfmsd.comparison.results import PairResults
from dfmsd.comparison.runner import compare
from dfmsd.detectors import DetectorConfig
from dfmsd.detectors.config import DENSE_ARCHS
from dfmsd.engine.configfile import read_config
from dfmsd.utils.files import write_json


def student(config: CompareConfig, arch: str) -> CompareConfig:
    """Return the comparison with the student on another architecture."""
    model = replace(config.student, arch=arch)
    if arch not in DENSE_ARCHS:
        model = replace(model, head_convs=DetectorConfig.head_convs)
    return replace(config, student=model, out=str(Path(config.out, arch)))


def summarize(results: PairResults) -> dict[str, Any]:
    """Return the teacher's AP and the AP of each method by seed."""
    aps: dict[str, dict[str, float]] = {}
    for row in results.rows:
        aps.setdefault(row.method, {})[str(row.seed)] = row.AP
    return {"teachers": results.teachers, "AP": aps}


def print_gains(found: dict[str, dict[str, Any]]) -> None:
    """Print the gain of each pair over its baseline, by seed."""
    table = Table("student", "teacher", "none", "taught", "gain", title="AP, everything else by default")
    for arch, pairs in found.items():
        for pair, result in pairs.items():
            none = result["AP"][BASELINE]
            for method, taught in result["AP"].items():
                if method == BASELINE:
                    continue
                gains = [100 * (taught[seed] - none[seed]) for seed in taught if seed in none]
                means = [f"{100 * fmean(values.values()):.1f}" for values in (none, taught)]
                table.add_row(arch, pair, *means, ", ".join(f"{gain:+.1f}" for gain in gains))
    Console().print(table)


def main() -> None:
    """Compare each student, write JSON and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--students", nargs="+", required=True, help="architectures")
    parser.add_argument("--seeds", nargs="+", type=int)
    options = parser.parse_args()
    config = read_config(CompareConfig, options.config)
    if options.seeds:
        config = replace(config, seeds=options.seeds)
    path = RESULTS / f"pairs-{Path(config.data.root).name}.json"
    found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    for arch in options.students:
        found[arch] = {results.pair: summarize(results) for results in compare(student(config, arch))}
        write_json(path, found)
    print_gains(found)


if __name__ == "__main__":
    main()
