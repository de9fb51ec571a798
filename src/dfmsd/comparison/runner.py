"""A comparison from its config to its tables: what applies, the teachers' AP, the costs, the runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Column, Table

from dfmsd.comparison.config import CompareConfig
from dfmsd.comparison.jobs import locked, preemptible, run_all, threads_of
from dfmsd.comparison.methods import BASELINE, parse_method
from dfmsd.comparison.results import PairResults, known_rows, read_row, write_results
from dfmsd.comparison.runs import PlannedRun, SkippedMethod, build_tasks, plan_run, plan_runs
from dfmsd.comparison.step_cost import measure_step_costs, threads
from dfmsd.comparison.tables import print_table, write_tables
from dfmsd.data.datamodule import CocoDataModule
from dfmsd.detectors import check_frozen
from dfmsd.distillation.cache import Layout, namespace
from dfmsd.distillation.checks import check_classes, check_teacher_ap
from dfmsd.engine.run import train
from dfmsd.engine.saved_config import same_run
from dfmsd.engine.teachers import load_teachers
from dfmsd.errors import DfmsdError
from dfmsd.evaluation.evaluate import evaluate, percent
from dfmsd.utils.classes import common_classes
from dfmsd.utils.console import console
from dfmsd.utils.device import default_device
from dfmsd.utils.files import write_json


@dataclass(frozen=True)
class PairPlan:
    """What is to be done for a pair.

    Attributes:
        runs: the runs that are asked for.
        former: finished runs of methods and seeds that an earlier call asked for: they stay in the table.
        skipped: methods that do not apply.
    """

    runs: Sequence[PlannedRun]
    former: Sequence[PlannedRun]
    skipped: Sequence[SkippedMethod]


def compare(
    config: CompareConfig, *, jobs: int = 1, allow_weak_teacher: bool = False, dry_run: bool = False
) -> list[PairResults]:
    """Compare methods; runs that are finished are taken as they are, unfinished ones go on.

    Args:
        config: the comparison.
        jobs: runs at a time, each in a process with its share of the cores.
        allow_weak_teacher: do not refuse a teacher that lacks classes or measures about 0.
        dry_run: print the runs and their budgets, and do nothing.

    Returns:
        One entry a pair; a run that failed is in ``failed``. Nothing in a dry run.

    Raises:
        DfmsdError: bad input, or a folder that holds other runs. A method that does not apply to a pair is no error.
        Stopped: SIGTERM or SIGUSR1 ended it; the runs have saved what they have, and the next call goes on.
    """
    if jobs < 1:
        raise DfmsdError(f"jobs: {jobs} is below 1; give the number of runs at a time")
    check_frozen(config.student)
    data = CocoDataModule(config.data, digest=config.teacher_cache is not None)
    plans = {pair: _plan(config, pair, data.class_names) for pair in config.pairs}
    _print_plans(config, plans)
    if dry_run:
        return []
    with locked(Path(config.out)) as lock, preemptible():
        aps = _measure_teachers(config, data, allow_weak_teacher)
        results = {pair: _begin(config, pair, plan, aps) for pair, plan in plans.items()}
        with threads(threads_of(jobs)):
            for pair, plan in plans.items():
                results[pair].costs = _costs(config, plan, data, Path(config.out, pair))
                _write(config, plan, results[pair])
        _run(config, plans, results, jobs, lock, data.num_labeled)
    for found in results.values():
        print_table(found, console)
        console.print(f"{Path(config.out, found.pair)}: results.json, compare.csv, table.md, plot.png, report.html")
    return list(results.values())


def _plan(config: CompareConfig, pair: str, class_names: Sequence[str]) -> PairPlan:
    runs, skipped = plan_runs(config, config.parsed_methods(), pair)
    tasks, refused = build_tasks(config, runs, class_names)
    runs = [run for run in runs if run.method.name in tasks]
    asked = {(run.method.name, run.config.seed) for run in runs}
    former = [
        plan_run(config, pair, parse_method(name), seed)
        for name, seed in known_rows(Path(config.out, pair))
        if (name, seed) not in asked
    ]
    kept = [run for run in former if run.finished and same_run(run.config, run.folder.path)]
    return PairPlan(runs, kept, [*skipped, *refused])


def _print_plans(config: CompareConfig, plans: Mapping[str, PairPlan]) -> None:
    table = Table(
        "pair", Column("method", overflow="fold"), "epochs", "seeds: done / started / to do", title="comparison"
    )
    for pair, plan in plans.items():
        for name, first in {run.method.name: run for run in plan.runs}.items():
            own = [run for run in plan.runs if run.method.name == name]
            done = sum(run.finished for run in own)
            started = sum(run.folder.exists for run in own) - done
            numbers = {teacher: f"T{number}" for number, teacher in enumerate(config.pairs[pair], 1)}
            stages = ", ".join(
                f"{stage.epochs} {'&'.join(numbers[name] for name in stage.teachers)}".rstrip()
                for stage in first.config.stages
            )
            table.add_row(pair, name, stages, f"{done} / {started} / {len(own) - done - started}")
    console.print(table)
    for pair, plan in plans.items():
        for skipped in plan.skipped:
            line = f"{pair}: {skipped.method.name} does not apply: {skipped.reason}"
            console.print(line, highlight=False)


def _measure_teachers(config: CompareConfig, data: CocoDataModule, allow_weak: bool) -> dict[str, float]:
    """Load the teachers, or train them, and give their AP; one that has not changed is not measured again."""
    path = Path(config.out) / "teachers.json"
    known: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    references = list(dict.fromkeys(name for teachers in config.pairs.values() for name in teachers))
    side, aps = config.data.image_size, {}
    for name, detector in load_teachers(references, data.class_names, Path(config.out), train=train).items():
        key = f"{name} {namespace(detector, Layout(detector.levels, (side, side)))}"
        checked = bool(detector.class_names) and not allow_weak
        if checked:
            check_classes(name, detector.class_names, data.class_names)
        if key not in known:
            comparable = common_classes(detector.class_names, data.class_names)
            metrics = evaluate(detector, data.val_dataloader(), device=default_device()) if comparable else {"AP": 0.0}
            known[key] = metrics["AP"] or 0.0
            write_json(path, known)
        aps[name] = known[key]
        ap = percent(aps[name]) if detector.class_names else "unknown, it has no head"
        console.print(f"teacher {name}: AP {ap}", highlight=False)
        if checked:
            check_teacher_ap(name, aps[name], 0.0)
    return aps


def _begin(config: CompareConfig, pair: str, plan: PairPlan, aps: Mapping[str, float]) -> PairResults:
    skipped = {skipped.method.name: skipped.reason for skipped in plan.skipped}
    return PairResults(pair, {name: aps[name] for name in config.pairs[pair]}, skipped=skipped)


def _costs(config: CompareConfig, plan: PairPlan, data: CocoDataModule, folder: Path) -> dict[str, dict[str, float]]:
    """Measure what has not been measured, beside the baseline."""
    path = folder / "costs.json"
    costs: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    missing = [run for run in plan.runs if run.method.name not in costs]
    if not missing:
        return costs
    beside = [run for run in plan.runs if run.method.name == BASELINE]
    tasks, _ = build_tasks(config, [*beside, *missing], data.class_names)
    console.print(f"measuring a step of {len(tasks)} methods side by side")
    measured = measure_step_costs(tasks, data)
    own = measured[BASELINE]
    for name, cost in measured.items():
        ratios = {"step_time": cost.step_ms / own.step_ms, "peak_memory": cost.peak_bytes / own.peak_bytes}
        costs.setdefault(name, {**cost._asdict(), **ratios})
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, costs)
    return costs


def _run(
    config: CompareConfig,
    plans: Mapping[str, PairPlan],
    results: Mapping[str, PairResults],
    jobs: int,
    lock: int,
    images: int,
) -> None:
    pending = {run.folder.path: run for plan in plans.values() for run in plan.runs if not run.finished}
    runs = sorted(pending.values(), key=lambda run: config.seeds.index(run.config.seed))
    if not runs:
        return
    steps = config.epochs * max(1, images // config.data.batch_size)
    ms = sum(steps * results[run.pair].costs[run.method.name]["step_ms"] for run in runs)
    console.print(f"{len(runs)} runs, {jobs} at a time: about {ms / 60e3 / jobs:.0f} minutes of training steps alone")

    def ended(run: PlannedRun, failure: str | None) -> None:
        for pair, plan in plans.items():
            if any(run.folder.path == other.folder.path for other in plan.runs):
                if failure:
                    results[pair].failed[str(run)] = failure
                _write(config, plan, results[pair])
        said = failure or f"AP {percent(read_row(run, {}).AP)}"
        console.print(f"{run}: {said}", highlight=False)

    try:
        run_all(runs, jobs, lock, ended, console)
    except KeyboardInterrupt:
        console.print(f"interrupted: what is finished is in {config.out}; the same command goes on")
        raise


def _write(config: CompareConfig, plan: PairPlan, results: PairResults) -> None:
    finished = [run for run in [*plan.runs, *plan.former] if run.finished]
    results.rows = [read_row(run, results.costs) for run in finished]
    folder = Path(config.out, results.pair)
    write_results(results, folder)
    write_tables(results, folder)
