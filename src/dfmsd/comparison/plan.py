"""Plan of a comparison: which runs it consists of, and which methods do not apply."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from dfmsd.comparison.config import CompareConfig
from dfmsd.comparison.methods import parse_method
from dfmsd.comparison.results import known_rows
from dfmsd.comparison.runs import PlannedRun, SkippedMethod, build_tasks, plan_run, plan_runs
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.fingerprints import Inputs, refuse_outdated
from dfmsd.engine.saved_config import same_run
from dfmsd.errors import DfmsdError


@dataclass(frozen=True)
class PairPlan:
    """Plan for one pair.

    Attributes:
        runs: requested runs.
        former: finished runs of methods and seeds requested by an earlier call; they stay in the table if this
            comparison would run them in the same way.
        skipped: methods that do not apply.
    """

    runs: Sequence[PlannedRun]
    former: Sequence[PlannedRun]
    skipped: Sequence[SkippedMethod]


def plan_pair(config: CompareConfig, pair: str, class_names: Sequence[str]) -> PairPlan:
    """Plan the runs of a pair.

    Args:
        config: the comparison.
        pair: its name.
        class_names: of the data.

    Raises:
        DfmsdError: a run's config is invalid, or its folder contains a different run.
    """
    runs, skipped = plan_runs(config, config.parsed_methods(), pair)
    tasks, refused = build_tasks(config, runs, class_names)
    runs = [run for run in runs if run.method.name in tasks]
    requested = {(run.method.name, run.config.seed) for run in runs}
    known = [row for row in known_rows(Path(config.out, pair)) if row not in requested]
    former = [run for name, seed in known if (run := _former_run(config, pair, name, seed))]
    return PairPlan(runs, former, [*skipped, *refused])


def refuse_outdated_runs(plans: Mapping[str, PairPlan], inputs: Inputs) -> None:
    """Refuse to compare new runs with those of other data or teachers.

    Args:
        plans: of all pairs.
        inputs: fingerprints of the data or the teachers.

    Raises:
        DfmsdError: names the first such run.
    """
    runs = dict.fromkeys(run.folder for plan in plans.values() for run in [*plan.runs, *plan.former])
    refuse_outdated(runs, inputs, "remove what is outdated")


def _former_run(config: CompareConfig, pair: str, name: str, seed: int) -> PlannedRun | None:
    """Return a finished run of an earlier call; None if this comparison has no such run."""
    try:
        run = plan_run(config, pair, parse_method(name), seed)
    except DfmsdError:  # such as a teacher that the pair has lost
        return None
    return run if run.finished and same_run(run.config, run.folder.path) else None


def print_plans(config: CompareConfig, plans: Mapping[str, PairPlan], console: Console) -> None:
    """Print the runs of each pair, and below the methods that do not apply."""
    table = Table(
        "pair", Column("method", overflow="fold"), "epochs", "seeds: done / started / to do", title="comparison"
    )
    for pair, plan in plans.items():
        numbers = {teacher: f"T{number}" for number, teacher in enumerate(config.pairs[pair], 1)}
        methods: dict[str, list[PlannedRun]] = defaultdict(list)
        for run in plan.runs:
            methods[run.method.name].append(run)
        for name, runs in methods.items():
            done = sum(run.finished for run in runs)
            started = sum(run.folder.exists for run in runs) - done
            stages = _describe_stages(runs[0].config, numbers)
            table.add_row(pair, name, stages, f"{done} / {started} / {len(runs) - done - started}")
    console.print(table)
    for pair, plan in plans.items():
        for skipped in plan.skipped:
            line = f"{pair}: {skipped.method.name} does not apply: {skipped.reason}"
            console.print(line, highlight=False)


def _describe_stages(config: DistillConfig, numbers: Mapping[str, str]) -> str:
    return ", ".join(
        f"{stage.epochs} {'&'.join(numbers[name] for name in stage.teachers)}".rstrip() + _keys(stage)
        for stage in config.stages
    )


def _keys(stage: StageConfig) -> str:
    keys = [f"basis={stage.basis}"] * (stage.basis != "auto") + ["labels=false"] * (not stage.labels)
    return f"[{','.join(keys)}]" if keys else ""
