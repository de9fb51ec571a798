"""Comparison of methods, from its config to its tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from dfmsd.comparison.config import CompareConfig
from dfmsd.comparison.folder import PairFolder
from dfmsd.comparison.methods import BASELINE
from dfmsd.comparison.plan import PairPlan, plan_pair, print_plans
from dfmsd.comparison.results import PairResults, read_row, write_results
from dfmsd.comparison.runs import PlannedRun, build_tasks
from dfmsd.comparison.step_cost import limited_threads, measure_step_costs
from dfmsd.comparison.tables import print_table, write_tables
from dfmsd.comparison.teachers import measure_teachers
from dfmsd.data.datamodule import CocoDataModule
from dfmsd.detectors import check_frozen
from dfmsd.engine.build import check_contents
from dfmsd.errors import DfmsdError
from dfmsd.evaluation.evaluate import percent
from dfmsd.launching.jobs import run_all, threads_per_job
from dfmsd.launching.launcher import Launcher
from dfmsd.launching.local import LocalLauncher
from dfmsd.utils.coerce import coerce
from dfmsd.utils.console import console
from dfmsd.utils.distributed import check_rank
from dfmsd.utils.files import check_writable, write_json
from dfmsd.utils.lock import locked, refuse_writer
from dfmsd.utils.signals import preemptible


def compare(
    config: CompareConfig, *, jobs: int = 1, allow_weak_teacher: bool = False, dry_run: bool = False
) -> list[PairResults]:
    """Compare methods; finished runs are reused and unfinished ones are resumed.

    Args:
        config: the comparison.
        jobs: number of parallel runs, each in a process with its share of the cores.
        allow_weak_teacher: accept teachers that know none of the classes or have an AP of about 0.
        dry_run: print the runs and their budgets, and do nothing else.

    Returns:
        One entry per pair, with failed runs in ``failed``; empty for a dry run.

    Raises:
        DfmsdError: invalid input, or a folder that contains different runs. Methods that do not apply to a pair are
            skipped without an error.
        Stopped: SIGTERM, SIGUSR1 or SIGHUP ended the comparison; the runs are saved, and the next call resumes them.
    """
    if coerce(jobs, int, "jobs") < 1:
        raise DfmsdError(f"jobs must be at least 1, got {jobs}")
    check_rank((1, 1))
    if not dry_run:
        check_writable(Path(config.out))
    check_frozen(config.student)
    digest = config.used_cache is not None
    data = CocoDataModule(config.data, digest=digest, teacher_size=config.teacher_size)
    check_contents(data)
    plans = {pair: plan_pair(config, pair, data.class_names) for pair in config.pairs}
    print_plans(config, plans, console)
    if dry_run:
        return []
    with locked(Path(config.out)), preemptible():
        for run in (run for plan in plans.values() for run in plan.runs if not run.finished):
            refuse_writer(run.folder.path)  # of a comparison that was killed, the last runs may still be stopping
        named = [*chain.from_iterable(config.pairs.values()), config.data.pseudo.teacher]
        teachers = [name for name in dict.fromkeys(named) if name]
        aps = measure_teachers(
            teachers,
            data,
            Path(config.out),
            console,
            allow_weak=allow_weak_teacher,
            teacher_classes=config.teacher_classes,
        )
        results = {pair: _empty_results(config, pair, plan, aps) for pair, plan in plans.items()}
        if config.data.labels_images:
            data.assume_pseudo_labels()
        with limited_threads(threads_per_job(jobs)):
            for pair, plan in plans.items():
                results[pair].costs = _measure_costs(config, plan, data, PairFolder(Path(config.out, pair)))
                _write(config, plan, results[pair])
        _run_pending(config, plans, results, data.num_labeled, LocalLauncher(), jobs)
    for pair_results in results.values():
        print_table(pair_results, console)
        console.print(str(PairFolder(Path(config.out, pair_results.pair))))
    return list(results.values())


def _empty_results(config: CompareConfig, pair: str, plan: PairPlan, aps: Mapping[str, float | None]) -> PairResults:
    skipped = {skipped.method.name: skipped.reason for skipped in plan.skipped}
    return PairResults(pair, {name: aps[name] for name in config.pairs[pair]}, skipped=skipped)


def _measure_costs(
    config: CompareConfig, plan: PairPlan, data: CocoDataModule, folder: PairFolder
) -> dict[str, dict[str, float]]:
    """Measure the step costs of new methods together with the baseline."""
    path = folder.costs_file
    costs: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    missing = [run for run in plan.runs if run.method.name not in costs]
    if not missing:
        return costs
    baselines = [run for run in plan.runs if run.method.name == BASELINE]
    tasks, _ = build_tasks(config, [*baselines, *missing], data.class_names)
    console.print(f"measuring the training step of {len(tasks)} methods in turns")
    measured = measure_step_costs(tasks, data)
    baseline = measured[BASELINE]
    for name, cost in measured.items():
        ratios = {"step_time": cost.step_ms / baseline.step_ms, "peak_memory": cost.peak_bytes / baseline.peak_bytes}
        costs.setdefault(name, {**cost._asdict(), **ratios})
    folder.path.mkdir(parents=True, exist_ok=True)
    write_json(path, costs)
    return costs


def _run_pending(
    config: CompareConfig,
    plans: Mapping[str, PairPlan],
    results: Mapping[str, PairResults],
    images: int,
    launcher: Launcher,
    jobs: int,
) -> None:
    pending = {run.folder.path: run for plan in plans.values() for run in plan.runs if not run.finished}
    runs = sorted(pending.values(), key=lambda run: config.seeds.index(run.config.seed))
    if not runs:
        return
    steps = config.epochs * max(1, images // config.data.batch_size)
    ms = sum(steps * results[run.pair].costs[run.method.name]["step_ms"] for run in runs)
    console.print(f"{len(runs)} runs, {jobs} at a time: about {ms / 60e3 / jobs:.0f} minutes of training steps alone")
    folders = {pair: {run.folder.path for run in plan.runs} for pair, plan in plans.items()}

    def on_end(run: PlannedRun, failure: str | None) -> None:
        for pair, plan in plans.items():
            if run.folder.path in folders[pair]:
                if failure:
                    results[pair].failed[str(run)] = failure
                _write(config, plan, results[pair])
        console.print(f"{run}: {failure or f'AP {percent(read_row(run, {}).AP)}'}", highlight=False)

    try:
        run_all(runs, jobs, on_end, console, launcher)
    except KeyboardInterrupt:
        console.print(f"interrupted: finished runs are in {config.out}; repeat the command to resume")
        raise


def _write(config: CompareConfig, plan: PairPlan, results: PairResults) -> None:
    finished = [run for run in [*plan.runs, *plan.former] if run.finished]
    results.rows = [read_row(run, results.costs) for run in finished]
    folder = Path(config.out, results.pair)
    write_results(results, folder)
    write_tables(results, folder)
