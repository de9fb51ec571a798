"""Run what the tables of docs/results.md lack, and write the pages.

    python benchmarks/pages/run.py --plan              # runs done and left, and the hours that they need
    python benchmarks/pages/run.py --jobs 2            # make tables; repeat it after an interruption
    python benchmarks/pages/run.py --only table-bccd

The comparisons are those of ``comparisons.yaml``. Their teachers are trained first where they are missing. The results
of each comparison replace its file in benchmarks/results as soon as all of its runs have finished. Hours are
extrapolated from the finished runs of a comparison, by the times of their files.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
from pathlib import Path
from statistics import mean

import scores
import write

from dfmsd.cli.flags import parsed_config, split_lists
from dfmsd.cli.runs import compare_parser
from dfmsd.comparison.config import CompareConfig
from dfmsd.comparison.folder import PairFolder
from dfmsd.comparison.runner import compare
from dfmsd.comparison.runs import PlannedRun, plan_runs
from dfmsd.errors import DfmsdError


def read_call(arguments: str) -> CompareConfig:
    """Return the config of the arguments of ``dfmsd compare``."""
    parser = compare_parser()
    values = parser.parse_args(split_lists(shlex.split(arguments)))
    return parsed_config(CompareConfig, parser.instantiate(values))


def planned(configs: list[CompareConfig]) -> list[PlannedRun]:
    """Return the runs of comparisons that share a folder, each once."""
    runs = [
        run
        for config in configs
        for pair in config.pairs
        for run in plan_runs(config, config.parsed_methods(), pair)[0]
    ]
    return list({run.folder.path: run for run in runs}.values())


def hours(run: PlannedRun) -> float:
    """Return the hours between the first and the last file of a finished run."""
    first, last = (run.folder.path / name for name in ("config.yaml", "metrics.json"))
    return (last.stat().st_mtime - first.stat().st_mtime) / 3600


def describe(name: str, runs: list[PlannedRun]) -> str:
    """Return the state of a comparison in one line."""
    done = [run for run in runs if run.finished]
    left = len(runs) - len(done)
    if not left:
        return f"{name}: {len(done)} runs done"
    known = f"about {left * mean(map(hours, done)):.1f} hours" if done else "hours unknown until one has finished"
    return f"{name}: {len(done)} of {len(runs)} runs done, {known}"


def main() -> None:
    """Print the plan, or run the comparisons and write the pages after each."""
    known = write.comparisons()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with its share of the cores")
    parser.add_argument("--plan", action="store_true", help="print what is left, and do nothing")
    parser.add_argument("--only", nargs="+", choices=known, default=list(known), metavar="NAME")
    options = parser.parse_args()
    for name in options.only:
        configs = [read_call(arguments) for arguments in known[name]]
        print(describe(name, planned(configs)), flush=True)
        if options.plan:
            continue
        try:
            failed = any(pair.failed for config in configs for pair in compare(config, jobs=options.jobs))
        except DfmsdError as error:  # such as a teacher that another program trains
            print(f"{name}: {error}; its table stays as it was")
            continue
        if failed:
            print(f"{name}: runs have failed; its table stays as it was")
            continue
        config = configs[-1]
        (pair,) = config.pairs
        shutil.copy(PairFolder(Path(config.out, pair)).results_file, scores.RESULTS / f"{name}.json")
        scores.read.cache_clear()
        write.main()


if __name__ == "__main__":
    main()
