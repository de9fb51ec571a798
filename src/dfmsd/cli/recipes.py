"""Command for comparisons with published results: recipe."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser, Namespace
from rich.table import Table

from dfmsd.api import planning
from dfmsd.engine.configfile import command_parser
from dfmsd.errors import DfmsdError
from dfmsd.recipes.catalog import find_recipe, list_recipes
from dfmsd.utils.cachedir import GIB
from dfmsd.utils.console import results_console
from dfmsd.utils.durations import HOUR, describe_duration

DRY_RUN = "--dry-run"


def recipe_parser() -> ArgumentParser:
    """Build the parser of ``dfmsd recipe``."""
    parser = command_parser("List, show and run comparisons on COCO whose results have been published.")
    parser.add_argument("action", choices=["list", "show", "run"])
    parser.add_argument("name", type=str | None, nargs="?", default=None, help="of the recipe, for show and run")
    parser.add_argument(
        DRY_RUN, action="store_true", help="with random weights and images, take two steps: peak memory, GPU hours"
    )
    parser.epilog = "run NAME also takes the flags of dfmsd compare, such as --data.root, --out and --launcher."
    return parser


def recipe_command(values: Namespace) -> None:
    """Run ``dfmsd recipe``, but for `as_comparison`."""
    if values.dry_run and values.action != "run":
        raise DfmsdError(f"{DRY_RUN}: it belongs to dfmsd recipe run NAME")
    if values.action == "list":
        for recipe in list_recipes():
            print(f"{recipe.name:45} {recipe.header[0]}")
        return
    if values.name is None:
        raise DfmsdError(f"recipe {values.action}: its name is missing; dfmsd recipe list prints them")
    recipe = find_recipe(values.name)
    if values.action == "show":
        print(recipe.text, end="")
        return
    trials = planning.try_recipe(recipe.name)
    console = results_console()
    console.print("\n".join(recipe.header), highlight=False)
    gpus = next(iter(trials.values())).hours
    table = Table("method", "peak memory, 2 images", *gpus, title="memory, and time of a run on COCO with one GPU")
    for name, trial in trials.items():
        times = (describe_duration(hours * HOUR) for hours in trial.hours.values())
        table.add_row(name, f"{trial.peak_bytes / GIB:.1f} GiB", *times)
    console.print(table)


def as_comparison(arguments: Sequence[str]) -> list[str]:
    """Turn ``recipe run NAME`` into the comparison of its config, with the flags that follow, unless it is a dry run.

    Raises:
        DfmsdError: there is no such recipe.
    """
    if list(arguments[:2]) != ["recipe", "run"] or len(arguments) == 2 or {DRY_RUN, "--help", "-h"} & {*arguments}:
        return list(arguments)
    return ["compare", "--config", str(find_recipe(arguments[2]).file), *arguments[3:]]
