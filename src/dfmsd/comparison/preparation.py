"""What a comparison measures before its runs: the teachers' AP, and what a step of each method costs.

On a cluster it is measured by the machines of the runs: ``python -m dfmsd.comparison.preparation CONFIG``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from dfmsd.comparison.config import CompareConfig
from dfmsd.comparison.folder import PairFolder
from dfmsd.comparison.methods import BASELINE
from dfmsd.comparison.plan import PairPlan, plan_pair, refuse_outdated_runs
from dfmsd.comparison.results import PairResults
from dfmsd.comparison.runs import build_tasks
from dfmsd.comparison.step_cost import limited_threads, measure_step_costs
from dfmsd.comparison.teachers import measure_teachers, were_measured
from dfmsd.data.datamodule import CocoDataModule
from dfmsd.engine.configfile import read_config
from dfmsd.launching import preparation
from dfmsd.launching.jobs import threads_per_job
from dfmsd.launching.launcher import Launcher
from dfmsd.launching.watch import await_file
from dfmsd.utils.console import console
from dfmsd.utils.files import write_json

MODULE = "dfmsd.comparison.preparation"  # not __name__, which is another one in its own process


def prepare(
    config: CompareConfig, data: CocoDataModule, plans: Mapping[str, PairPlan], *, threads: int, allow_weak: bool
) -> dict[str, PairResults]:
    """Make the teachers and measure them and the steps; what has been measured before is read from files.

    Args:
        config: the comparison.
        data: of the comparison.
        plans: of its pairs.
        threads: of a step.
        allow_weak: accept teachers that know none of the classes or have an AP of about 0.

    Returns:
        The results of each pair, without its runs.

    Raises:
        DfmsdError: a teacher cannot be made or is too weak, or has changed since it taught in a run.
    """
    aps, inputs = measure_teachers(
        _teachers(config),
        data,
        Path(config.out),
        console,
        allow_weak=allow_weak,
        teacher_classes=config.teacher_classes,
    )
    refuse_outdated_runs(plans, inputs)
    if config.data.labels_images:
        data.assume_pseudo_labels()
    results = {}
    for pair, plan in plans.items():
        skipped = {skipped.method.name: skipped.reason for skipped in plan.skipped}
        teachers = {name: aps[name] for name in config.pairs[pair]}
        found = PairResults(pair, teachers, skipped=skipped, deliver=config.deliver)
        with limited_threads(threads):
            found.costs = _measure_costs(config, plan, data, PairFolder(Path(config.out, pair)))
        results[pair] = found
    return results


def is_prepared(config: CompareConfig, plans: Mapping[str, PairPlan]) -> bool:
    """Return whether all of it has been measured before; `prepare` measures again what has changed since."""
    return were_measured(_teachers(config), Path(config.out)) and all(
        {run.method.name for run in plan.runs} <= _read_costs(PairFolder(Path(config.out, pair))).keys()
        for pair, plan in plans.items()
    )


def prepare_elsewhere(config: CompareConfig, launcher: Launcher, *, allow_weak: bool) -> None:
    """Let another machine do it, and wait for it.

    Args:
        config: the comparison.
        launcher: finds the machine.
        allow_weak: as in `prepare`.

    Raises:
        DfmsdError: a teacher cannot be made or is too weak.
    """
    what = "the teachers and the training steps are measured first"
    preparation.prepare_elsewhere(MODULE, config, launcher, what, allow_weak=allow_weak)
    for pair in config.pairs:
        await_file(PairFolder(Path(config.out, pair)).costs_file)


def _teachers(config: CompareConfig) -> list[str]:
    named = [*chain.from_iterable(config.pairs.values()), config.data.pseudo.teacher]
    return [name for name in dict.fromkeys(named) if name]


def _read_costs(folder: PairFolder) -> dict[str, dict[str, float]]:
    file = folder.costs_file
    costs: dict[str, dict[str, float]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return costs


def _measure_costs(
    config: CompareConfig, plan: PairPlan, data: CocoDataModule, folder: PairFolder
) -> dict[str, dict[str, float]]:
    """Measure the step costs of new methods together with the baseline."""
    costs = _read_costs(folder)
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
    write_json(folder.costs_file, costs)
    return costs


def _main(file: Path, *, allow_weak: bool) -> None:
    config = read_config(CompareConfig, file)
    data = CocoDataModule(config.data, digest=config.used_cache is not None, teacher_size=config.teacher_size)
    plans = {pair: plan_pair(config, pair, data.class_names) for pair in config.pairs}
    prepare(config, data, plans, threads=threads_per_job(1), allow_weak=allow_weak)


if __name__ == "__main__":
    preparation.main(_main)
