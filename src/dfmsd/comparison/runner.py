"""Comparison of methods, from its config to its tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dfmsd.comparison.config import CompareConfig
from dfmsd.comparison.folder import PairFolder
from dfmsd.comparison.plan import PairPlan, plan_pair, print_plans, refuse_outdated_runs
from dfmsd.comparison.preparation import is_prepared, prepare, prepare_elsewhere
from dfmsd.comparison.results import PairResults, read_row, write_results
from dfmsd.comparison.runs import PlannedRun
from dfmsd.comparison.tables import print_table, write_tables
from dfmsd.data.datamodule import CocoDataModule
from dfmsd.detectors import check_frozen
from dfmsd.engine.build import check_batches, check_contents
from dfmsd.engine.fingerprints import fingerprint_data
from dfmsd.errors import DfmsdError
from dfmsd.evaluation.evaluate import percent
from dfmsd.launching.choice import opened
from dfmsd.launching.jobs import run_all, threads_per_job
from dfmsd.launching.launcher import Launcher
from dfmsd.utils.coerce import coerce
from dfmsd.utils.console import console
from dfmsd.utils.distributed import check_rank
from dfmsd.utils.durations import describe_duration
from dfmsd.utils.files import check_writable
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
        DfmsdError: invalid input, or a folder that contains different runs, or runs of other data or teachers. Methods
            that do not apply to a pair are skipped without an error.
        Stopped: SIGTERM, SIGUSR1 or SIGHUP ended the comparison; the runs are saved, and the next call resumes them.
    """
    if coerce(jobs, int, "jobs") < 1:
        raise DfmsdError(f"jobs must be at least 1, got {jobs}")
    check_rank((1, 1))
    if dry_run:
        _plan(config)
        return []
    check_writable(Path(config.out))
    with opened(config) as launcher:
        return _compare(config, launcher, jobs, allow_weak=allow_weak_teacher)


def _compare(config: CompareConfig, launcher: Launcher, jobs: int, *, allow_weak: bool) -> list[PairResults]:
    data, plans = _plan(config)
    with locked(Path(config.out)), preemptible():
        for run in (run for plan in plans.values() for run in plan.runs if not run.finished):
            if not launcher.continues(run.folder.path):  # of a killed comparison, the last runs may still be stopping
                refuse_writer(run.folder.path)
        if launcher.elsewhere and not is_prepared(config, plans):
            prepare_elsewhere(config, launcher, allow_weak=allow_weak)
        results = prepare(config, data, plans, threads=threads_per_job(jobs), allow_weak=allow_weak)
        for pair, plan in plans.items():
            _write(config, plan, results[pair])
        _run_pending(config, plans, results, data.num_labeled, launcher, jobs)
    for pair_results in results.values():
        print_table(pair_results, console)
        console.print(str(PairFolder(Path(config.out, pair_results.pair))))
    return list(results.values())


def _plan(config: CompareConfig) -> tuple[CocoDataModule, dict[str, PairPlan]]:
    """Open the data, and plan and print the runs of each pair."""
    check_frozen(config.student)
    digest = config.used_cache is not None
    data = CocoDataModule(config.data, digest=digest, teacher_size=config.teacher_size)
    check_contents(data)
    check_batches(data, config.optim)
    plans = {pair: plan_pair(config, pair, data.class_names) for pair in config.pairs}
    refuse_outdated_runs(plans, fingerprint_data(data))
    print_plans(config, plans, console)
    return data, plans


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
    steps_alone = describe_duration(ms / 1e3 / jobs)
    console.print(f"{len(runs)} runs, {jobs} at a time: about {steps_alone} of training steps alone")
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
