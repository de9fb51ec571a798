"""The command line: thin functions over the Python API."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonargparse
from rich.console import Console
from rich.logging import RichHandler

from dfmsd.cli import models
from dfmsd.comparison.config import CompareConfig
from dfmsd.comparison.methods import split_methods
from dfmsd.engine.allocator import keep_freed_memory
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.configfile import (
    apply_list_flags,
    build_config,
    check_text,
    command_parser,
    config_files,
    config_parser,
    explain,
    naming,
)
from dfmsd.errors import INTERRUPTED, DfmsdError, Stopped, one_line
from dfmsd.utils.console import console

if TYPE_CHECKING:
    from dfmsd.engine.run import Result

# The commands import what they need themselves: the engine and torchvision take longer to import than most input to be
# refused.


def _train_parser() -> jsonargparse.ArgumentParser:
    parser = config_parser(TrainConfig)
    _add_run_flags(parser)
    return parser


def _train(values: Any) -> None:
    config = build_config(TrainConfig, values)

    from dfmsd.engine.run import train

    _finish(train(config, resume=values.resume, overwrite=values.overwrite))


def _distill_parser() -> jsonargparse.ArgumentParser:
    parser = config_parser(DistillConfig)
    _add_run_flags(parser)
    _add_check_flags(parser)
    parser.add_argument("--no-distill", action="store_true", help="the baseline: the same loop without teachers")
    return parser


def _distill(values: Any) -> None:
    config = build_config(DistillConfig, values)

    from dfmsd.engine.run import distill

    result = distill(
        config,
        no_distill=values.no_distill,
        resume=values.resume,
        overwrite=values.overwrite,
        allow_weak_teacher=values.allow_weak_teacher,
        check_images=values.check_images,
    )
    _finish(result)


def _finish(result: Result) -> None:
    from dfmsd.reporting import run_report
    from dfmsd.utils.distributed import is_first_process

    if is_first_process():
        print(run_report(result.run))


def _check_parser() -> jsonargparse.ArgumentParser:
    parser = config_parser(DistillConfig)
    parser.description = (
        "Pre-flight of a distillation: levels, teachers' AP, parameters, loss scales. Nothing is trained."
    )
    _add_check_flags(parser)
    return parser


def _check(values: Any) -> None:
    config = build_config(DistillConfig, values)

    from dfmsd.engine.run import check

    check(config, allow_weak_teacher=values.allow_weak_teacher, check_images=values.check_images)


def _estimate_parser() -> jsonargparse.ArgumentParser:
    parser = config_parser(DistillConfig)
    parser.description = "Cost of a distillation: FLOPs, bytes, time on this machine, GPU hours. Nothing is trained."
    parser.add_argument("--json", type=Path | None, default=None, help="write the estimate to this file")
    return parser


def _estimate(values: Any) -> None:
    config = build_config(DistillConfig, values)

    from dfmsd.estimation.estimator import estimate
    from dfmsd.estimation.tables import print_estimate
    from dfmsd.utils.files import write_json

    found = estimate(config)
    print_estimate(found, Console())
    if values.json:
        write_json(values.json, found.as_json())


def _compare_parser() -> jsonargparse.ArgumentParser:
    parser = config_parser(CompareConfig)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with its share of the cores")
    parser.add_argument("--dry-run", action="store_true", help="print the runs and their budgets, and do nothing")
    parser.add_argument("--allow-weak-teacher", action="store_true", help="accept a teacher that measures badly")
    return parser


def _compare(values: Any) -> None:
    config = build_config(CompareConfig, values)

    from dfmsd.comparison.runner import compare

    found = compare(config, jobs=values.jobs, allow_weak_teacher=values.allow_weak_teacher, dry_run=values.dry_run)
    if any(results.failed for results in found):
        sys.exit(1)


def _lists_of(arguments: Sequence[str]) -> list[str]:
    """Turn ``--methods a,b[c=1,d=2] --seeds 0,1`` into JSON lists."""
    split: dict[str, Callable[[str], list[Any]]] = {
        "--methods": split_methods,
        "--seeds": lambda text: [int(seed) if seed.strip().isdigit() else seed for seed in text.split(",")],
    }
    whole = [part for text in arguments for part in (text.split("=", 1) if text.split("=")[0] in split else [text])]
    former = ["", *whole]
    return [
        json.dumps(split[flag](text)) if flag in split and not text.startswith(("[", "--")) else text
        for flag, text in zip(former, whole, strict=False)
    ]


def _convert_parser() -> jsonargparse.ArgumentParser:
    parser = command_parser("A data set in the layout of Pascal VOC or YOLO, turned into the COCO layout.")
    parser.add_argument("source", type=Path, help="its folder; what must be in it is told in docs/convert.md")
    parser.add_argument("--from", dest="layout", choices=["voc", "yolo"], required=True, help="layout of the source")
    parser.add_argument("--out", type=Path, required=True, help="folder that is made; images are copied")
    return parser


def _convert(values: Any) -> None:
    from dfmsd.data.convert import convert

    for split, (images, boxes) in convert(values.source, values.layout, values.out).items():
        print(f"{split}: {images} images, {boxes} boxes")


def _report_parser() -> jsonargparse.ArgumentParser:
    parser = command_parser("The report of a run, of a folder of runs or of a comparison, with pictures and costs.")
    parser.add_argument("run", type=Path, help="run folder; folder with a run each in its folders; folder of `compare`")
    parser.add_argument("--baseline", type=Path | None, default=None, help="run folder to compare the run with")
    parser.add_argument("--teacher", type=str, nargs="+", default=[], help="teachers; those of the run by default")
    parser.add_argument("--images", type=int, default=200, help="validation images to look at, at most")
    return parser


def _report(values: Any) -> None:
    from dfmsd.comparison.tables import rewrite_tables
    from dfmsd.reporting import report

    pages = [] if values.baseline or values.teacher else rewrite_tables(values.run)
    for page in pages or [report(values.run, values.baseline, values.teacher, values.images)]:
        print(page)


def _demo_parser() -> jsonargparse.ArgumentParser:
    parser = command_parser("Teachers, baseline and distilled student on the embedded data set, with a report.")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the four runs and the report")
    return parser


def _demo(values: Any) -> None:
    from dfmsd.demo import demo

    demo(values.out)


def _list_parser() -> jsonargparse.ArgumentParser:
    parser = command_parser("What there is to choose from.")
    parser.add_argument("what", choices=["losses", "detectors", "backbones"])
    return parser


def _list(values: Any) -> None:
    print("\n".join(_names(values.what)))


def _names(what: str) -> list[str]:
    if what == "losses":
        from dfmsd.losses import LOSSES

        return sorted(LOSSES)

    from dfmsd.detectors import DETECTORS, list_backbones, torchvision_archs

    return list_backbones() if what == "backbones" else [*sorted(DETECTORS), *torchvision_archs()]


def _add_run_flags(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("--resume", action="store_true", help="go on with the unfinished run in --out")
    parser.add_argument("--overwrite", action="store_true", help="delete what is in --out first")


def _add_check_flags(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("--allow-weak-teacher", action="store_true", help="accept a teacher that measures badly")
    parser.add_argument(
        "--check-images", type=int | None, default=None, help="images of the pre-flight; all by default"
    )


Command = tuple[Callable[[], jsonargparse.ArgumentParser], Callable[[Any], None]]
COMMANDS: dict[str, Command] = {
    "demo": (_demo_parser, _demo),
    "train": (_train_parser, _train),
    "distill": (_distill_parser, _distill),
    "check": (_check_parser, _check),
    "estimate": (_estimate_parser, _estimate),
    "compare": (_compare_parser, _compare),
    "evaluate": (models.evaluate_parser, models.evaluate_command),
    "predict": (models.predict_parser, models.predict_command),
    "export": (models.export_parser, models.export_command),
    "convert": (_convert_parser, _convert),
    "visualize": (models.visualize_parser, models.visualize_command),
    "share": (models.share_parser, models.share_command),
    "report": (_report_parser, _report),
    "list": (_list_parser, _list),
}


CONFIGS: dict[str, type[Any]] = {
    "train": TrainConfig,
    "distill": DistillConfig,
    "check": DistillConfig,
    "estimate": DistillConfig,
    "compare": CompareConfig,
}


def run(arguments: Sequence[str]) -> None:
    """Run one command.

    Raises:
        DfmsdError: what a user can mend.
    """
    command = arguments[0] if arguments and arguments[0] in COMMANDS else ""
    parser = command_parser("Distil big object detectors into a small, better one.")
    parser.prog = "dfmsd"  # also as python -m dfmsd
    commands = parser.add_subcommands(dest="command")
    for name in [command] if command else COMMANDS:
        subparser = COMMANDS[name][0]()
        commands.add_subcommand(name, subparser, help=subparser.description)
    files = config_files(arguments)
    for file in files:
        check_text(file, CONFIGS.get(command))
    try:
        if CONFIGS.get(command) is DistillConfig:
            for key in ("stages", "loss"):
                arguments = [command, *apply_list_flags(COMMANDS[command][0], arguments[1:], key)]
        if command == "compare":
            arguments = _lists_of(arguments)
        values = parser.parse_args(list(arguments))
        with naming(files):
            values = parser.instantiate(values)
    except jsonargparse.ArgumentError as error:
        see = " and ".join([f"dfmsd {command} --help" if command else "dfmsd --help", *map(str, files)])
        raise DfmsdError(f"{explain(error, CONFIGS.get(command))}; see {see}") from error
    COMMANDS[values.command][1](values[values.command])


def main() -> None:
    """Run the command line: status 2 and one line for what the user can mend, 130 and 75 after signals."""
    logging.basicConfig(format="%(message)s", handlers=[RichHandler(console=console, show_time=False, show_path=False)])
    logging.getLogger("dfmsd").setLevel(logging.INFO)
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    keep_freed_memory()
    try:
        run([argument for argument in arguments if argument != "--debug"])
    except DfmsdError as error:
        if debug:
            raise
        print(f"dfmsd: error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:  # the training has printed it
        sys.exit(stopped.status)
    except KeyboardInterrupt:
        print("dfmsd: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
