"""Commands that train, or plan a training: demo, init, train, distill, check, estimate, compare, tune."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from dfmsd.api import planning, runs
from dfmsd.cli.flags import parsed_config
from dfmsd.comparison.config import CompareConfig
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.configfile import command_parser, config_parser
from dfmsd.errors import DfmsdError
from dfmsd.runfolder import RunFolder
from dfmsd.tuning.config import TuneConfig
from dfmsd.utils.console import results_console

if TYPE_CHECKING:
    from dfmsd.engine.run import Result


def demo_parser() -> ArgumentParser:
    """Build the parser of ``dfmsd demo``."""
    parser = command_parser("Train teachers, baseline and student on the built-in digits, and write a report.")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the four runs and the report")
    return parser


def demo_command(values: Namespace) -> None:
    """Run ``dfmsd demo``."""
    from dfmsd.demo import demo

    demo(values.out)


def init_parser() -> ArgumentParser:
    """Build the parser of ``dfmsd init``."""
    parser = command_parser("Write the commented config of a first distillation, chosen for data, teacher and machine.")
    parser.add_argument("data", type=str, help="data set folder, or digits")
    parser.add_argument("--teacher", type=str | None, default=None, help="a reference; without, one is trained first")
    parser.add_argument("--out", type=Path, required=True, help="YAML file to write, such as my.yaml")
    parser.add_argument("--student", type=str | None, default=None, help="such as fcos/resnet18; chosen by default")
    parser.add_argument("--epochs", type=int | None, default=None, help="of the student, and of its teacher's training")
    parser.add_argument("--hours", type=float | None, default=None, help="time limit, with the teacher's training")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--allow-weak-teacher", action="store_true", help="accept a teacher of other classes")
    return parser


def init_command(values: Namespace) -> None:
    """Run ``dfmsd init``."""
    files = planning.init(
        values.data,
        values.out,
        teacher=values.teacher,
        student=values.student,
        epochs=values.epochs,
        hours=values.hours,
        overwrite=values.overwrite,
        allow_weak_teacher=values.allow_weak_teacher,
    )
    for file in files:
        print(file)


def train_parser() -> ArgumentParser:
    """Build the parser of ``dfmsd train``."""
    parser = config_parser(TrainConfig)
    parser.description = "Train a detector on labels alone."
    _add_run_flags(parser)
    return parser


def train_command(values: Namespace) -> None:
    """Run ``dfmsd train``."""
    config = parsed_config(TrainConfig, values)
    _print_report(runs.train(config, resume=values.resume, overwrite=values.overwrite))


def distill_parser() -> ArgumentParser:
    """Build the parser of ``dfmsd distill``."""
    parser = config_parser(DistillConfig)
    parser.description = "Distill one or several teachers into a student, stage by stage."
    parser.epilog = "Flags reach into lists and mappings: --stages.0.epochs 3 --stages.0.near true --loss.alpha 2"
    _add_run_flags(parser)
    _add_preflight_flags(parser)
    parser.add_argument("--no-distill", action="store_true", help="train the baseline: the same loop without teachers")
    return parser


def distill_command(values: Namespace) -> None:
    """Run ``dfmsd distill``."""
    result = runs.distill(
        parsed_config(DistillConfig, values),
        no_distill=values.no_distill,
        resume=values.resume,
        overwrite=values.overwrite,
        allow_weak_teacher=values.allow_weak_teacher,
        check_images=values.check_images,
    )
    _print_report(result)


def check_parser() -> ArgumentParser:
    """Build the parser of ``dfmsd check``."""
    parser = config_parser(DistillConfig)
    parser.set_defaults(out=planning.NO_RUN)
    parser.description = "Check a distillation before it runs: level pairs, the teachers' AP, parameters, loss scales."
    _add_preflight_flags(parser)
    parser.add_argument("--rank", action="store_true", help="order the teachers by short distillations instead")
    parser.add_argument("--rank-steps", type=int | None, default=None, help="steps of each, 200 by default; 0: none")
    parser.add_argument(
        "--teacher", action="append", metavar="REFERENCE", help="with --rank, instead of the stages' teachers; repeat"
    )
    return parser


def check_command(values: Namespace) -> None:
    """Run ``dfmsd check``."""
    if values.rank:
        _rank(values)
        return
    for flag, value in (("--teacher", values.teacher), ("--rank-steps", values.rank_steps)):
        if value is not None:
            raise DfmsdError(f"{flag}: it belongs to --rank; pass both, or name teachers in the stages")
    config = parsed_config(DistillConfig, values)
    planning.check(config, allow_weak_teacher=values.allow_weak_teacher, check_images=values.check_images)


def _rank(values: Namespace) -> None:
    from dfmsd.ranking.tables import print_ranking

    if values.teacher is not None:
        values.stages = planning.stages_of(values.teacher)
    steps = {} if values.rank_steps is None else {"steps": values.rank_steps}
    config = parsed_config(DistillConfig, values)
    print_ranking(planning.rank_teachers(config, check_images=values.check_images, **steps), results_console())


def estimate_parser() -> ArgumentParser:
    """Build the parser of ``dfmsd estimate``."""
    parser = config_parser(DistillConfig)
    parser.set_defaults(out=planning.NO_RUN)
    parser.description = "Estimate the cost of a distillation: FLOPs, memory, time on this machine, GPU hours on COCO."
    parser.add_argument("--json", type=Path | None, default=None, help="JSON file to write the estimate to")
    return parser


def estimate_command(values: Namespace) -> None:
    """Run ``dfmsd estimate``."""
    from dfmsd.estimation.tables import print_estimate

    print_estimate(planning.estimate(parsed_config(DistillConfig, values), json=values.json), results_console())


def compare_parser() -> ArgumentParser:
    """Build the parser of ``dfmsd compare``."""
    parser = config_parser(CompareConfig)
    parser.description = "Compare distillation methods over seeds and teacher-student pairs, at an equal budget."
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with its share of the cores")
    parser.add_argument("--dry-run", action="store_true", help="print the runs and their budgets, and do nothing")
    parser.add_argument("--allow-weak-teacher", action="store_true", help="accept a teacher with a low AP")
    return parser


def compare_command(values: Namespace) -> None:
    """Run ``dfmsd compare``; exit with status 1 if a run has failed."""
    config = parsed_config(CompareConfig, values)
    results = planning.compare(
        config, jobs=values.jobs, dry_run=values.dry_run, allow_weak_teacher=values.allow_weak_teacher
    )
    if any(pair.failed for pair in results):
        sys.exit(1)


def tune_parser() -> ArgumentParser:
    """Build the parser of ``dfmsd tune``."""
    parser = config_parser(TuneConfig)
    parser.description = "Search for the settings of a distillation on held-out training images."
    parser.epilog = "The keys are those of dfmsd distill, and tune. Repeat the command to continue a search."
    parser.add_argument("--trials", type=int | None, default=None, help="number of trials in total")
    parser.add_argument(
        "--hours", type=float | None, default=None, help="time for everything, besides or without --trials"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with its share of the cores")
    parser.add_argument(
        "--storage", type=str | None, default=None, help="URL of the study; an SQLite file in --out by default"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the search space and the hours, and do nothing")
    parser.add_argument("--allow-weak-teacher", action="store_true", help="accept a teacher with a low AP")
    return parser


def tune_command(values: Namespace) -> None:
    """Run ``dfmsd tune``."""
    planning.tune(
        parsed_config(TuneConfig, values),
        trials=values.trials,
        hours=values.hours,
        jobs=values.jobs,
        storage=values.storage,
        dry_run=values.dry_run,
        allow_weak_teacher=values.allow_weak_teacher,
    )


def _add_run_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--resume", action="store_true", help="continue the unfinished run in --out")
    parser.add_argument("--overwrite", action="store_true", help="delete the contents of --out first")


def _add_preflight_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--allow-weak-teacher", action="store_true", help="accept a teacher with a low AP")
    parser.add_argument(
        "--check-images", type=int | None, default=None, help="validation images of the pre-flight; all by default"
    )


def _print_report(result: Result) -> None:
    from dfmsd.utils.distributed import is_first_process

    if is_first_process():
        print(RunFolder(result.run).report_file)
