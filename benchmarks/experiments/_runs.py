"""Runs of a comparison that are changed in a way that no option has."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from dfmsd.comparison.config import CompareConfig
from dfmsd.comparison.methods import parse_method
from dfmsd.comparison.runs import plan_run
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.run import Result, distill
from dfmsd.utils.files import write_json

RESULTS = Path(__file__).resolve().parents[1] / "results"


def run_missing(
    config: CompareConfig,
    experiment: str,
    rows: Iterable[tuple[int, str, str]],
    run: Callable[[DistillConfig, int], Result] = lambda config, _: distill(config, overwrite=True),
) -> None:
    """Run what ``benchmarks/results/<experiment>-<data>.json`` lacks, and write it after each run.

    Args:
        config: comparison with one pair.
        experiment: name of the file and of the folder of the runs.
        rows: seed, name of the row, and the method as in a comparison.
        run: makes a run of this config and seed.
    """
    path = RESULTS / f"{experiment}-{Path(config.data.root).name}.json"
    results: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    (pair,) = config.pairs
    for seed, row, method in rows:
        if str(seed) in results.get(row, {}):
            continue
        planned = plan_run(config, pair, parse_method(method), seed).config
        folder = Path(config.out, experiment, *Path(planned.out).parts[-2:])
        ap = run(replace(planned, out=str(folder)), seed).metrics["AP"]
        assert ap is not None
        results.setdefault(row, {})[str(seed)] = ap
        write_json(path, results)
