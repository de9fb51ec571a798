"""The command line: parse the arguments, call the Python API, and turn errors into one line and an exit status."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from rich.logging import RichHandler

from dfmsd import __version__
from dfmsd.cli import models, recipes, runs
from dfmsd.cli.flags import (
    config_files,
    in_flags,
    merge_list_flags,
    naming,
    refuse_spaced_lists,
    refuse_two_sizes,
    split_lists,
)
from dfmsd.comparison.config import CompareConfig
from dfmsd.engine.allocator import keep_freed_memory
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.configfile import command_parser
from dfmsd.engine.explanation import explain
from dfmsd.engine.yamlcheck import check_yaml
from dfmsd.errors import INTERRUPTED, DfmsdError, Stopped, one_line
from dfmsd.tuning.config import TuneConfig
from dfmsd.utils.coerce import expand_home
from dfmsd.utils.console import console, discard
from dfmsd.utils.files import DISK_FULL
from dfmsd.utils.heard import Unrepeated


class Command(NamedTuple):
    """A command of ``dfmsd``.

    Attributes:
        parser: builds its parser.
        run: runs it with the parsed arguments.
        config: config whose keys are its flags.
    """

    parser: Callable[[], ArgumentParser]
    run: Callable[[Namespace], None]
    config: type[Any] | None = None


COMMANDS: dict[str, Command] = {
    "demo": Command(runs.demo_parser, runs.demo_command),
    "init": Command(runs.init_parser, runs.init_command),
    "train": Command(runs.train_parser, runs.train_command, TrainConfig),
    "distill": Command(runs.distill_parser, runs.distill_command, DistillConfig),
    "check": Command(runs.check_parser, runs.check_command, DistillConfig),
    "estimate": Command(runs.estimate_parser, runs.estimate_command, DistillConfig),
    "compare": Command(runs.compare_parser, runs.compare_command, CompareConfig),
    "tune": Command(runs.tune_parser, runs.tune_command, TuneConfig),
    "recipe": Command(recipes.recipe_parser, recipes.recipe_command),
    "evaluate": Command(models.evaluate_parser, models.evaluate_command),
    "predict": Command(models.predict_parser, models.predict_command),
    "export": Command(models.export_parser, models.export_command),
    "students": Command(models.students_parser, models.students_command),
    "visualize": Command(models.visualize_parser, models.visualize_command),
    "report": Command(models.report_parser, models.report_command),
    "share": Command(models.share_parser, models.share_command),
    "data": Command(models.data_parser, models.data_command),
    "convert": Command(models.convert_parser, models.convert_command),
    "list": Command(models.list_parser, models.list_command),
}


def run(arguments: Sequence[str]) -> None:
    """Run one command.

    Args:
        arguments: the command and its flags.

    Raises:
        DfmsdError: bad input.
    """
    arguments = recipes.as_comparison([expand_home(argument) for argument in arguments])
    name = arguments[0] if arguments and arguments[0] in COMMANDS else ""
    config = COMMANDS[name].config if name else None
    parser = command_parser("Distill large object detectors into a small student.")
    parser.prog = "dfmsd"  # also for python -m dfmsd
    parser.add_argument("--version", action="version", version=f"dfmsd {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error; works with all commands")
    commands = parser.add_subcommands(
        dest="command", title="commands", description="`dfmsd COMMAND --help` lists its flags.", metavar="COMMAND"
    )
    subparsers = {command: COMMANDS[command].parser() for command in ([name] if name else COMMANDS)}
    for command, subparser in subparsers.items():
        commands.add_subcommand(command, subparser, help=subparser.description)
        subparser.prog = f"dfmsd {command}"
        if COMMANDS[command].config:
            subparser.usage = f"dfmsd {command} [--config FILE] [--KEY VALUE ...] [options]"
    arguments = [re.sub("^--print_config", "--print-config", argument) for argument in arguments]  # its former name
    refuse_two_sizes(arguments)
    if config is CompareConfig:
        arguments = split_lists(arguments)
    if config:
        refuse_spaced_lists(arguments, subparsers[name])
    files = config_files(arguments)
    for file in files:
        check_yaml(file, config)
    try:
        if config in (DistillConfig, TuneConfig):
            arguments = [name, *merge_list_flags(subparsers[name], arguments[1:])]
        values = parser.parse_args(list(arguments))
        with naming(files):
            values = parser.instantiate(values)
    except ArgumentError as error:
        found = [str(file) for file in files if os.path.isfile(file)]
        see = " and ".join([f"dfmsd {name} --help" if name else "dfmsd --help", *found])
        raise DfmsdError(f"{explain(error, subparsers.get(name, parser))}; see {see}") from error
    try:
        COMMANDS[values.command].run(values[values.command])
    except DfmsdError as error:
        raise DfmsdError(in_flags(str(error), subparsers[values.command])) from error


def main() -> None:
    """Run the command line; exit with status 2 after bad input, 130 after Ctrl-C, 75 after SIGTERM or the like."""
    handler = RichHandler(console=console, show_time=False, show_path=False)
    handler.addFilter(Unrepeated())
    logging.basicConfig(format="%(message)s", handlers=[handler])
    logging.getLogger("dfmsd").setLevel(logging.INFO)
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    keep_freed_memory()
    try:
        run([argument for argument in arguments if argument != "--debug"])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        discard(sys.stdout)
        sys.exit(1)
    except DfmsdError as error:
        if debug:
            raise
        print(f"dfmsd: error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if debug or error.errno not in DISK_FULL:
            raise
        print(f"dfmsd: error: no space left to write ({error.strerror}); free some, then try again", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:  # the run has printed how to continue it
        sys.exit(stopped.status)
    except KeyboardInterrupt:
        print("dfmsd: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
