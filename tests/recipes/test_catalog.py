"""The recipes themselves, and the command around them."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.bad_input import dfmsd as dfmsd
from tests.helpers.command import Command
from tests.helpers.documented import ROOT

from dfmsd.cli.recipes import as_comparison
from dfmsd.comparison.config import CompareConfig
from dfmsd.engine.configfile import read_config
from dfmsd.recipes.catalog import Recipe, find_recipe, list_recipes
from dfmsd.recipes.trial import Trial

RECIPES = [pytest.param(recipe, id=recipe.name) for recipe in list_recipes()]
PUBLISHED = re.compile(r"^published on COCO val2017: (.*)$", flags=re.MULTILINE)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_a_comparison_of_a_baseline_and_dfmsd(recipe: Recipe) -> None:
    config = read_config(CompareConfig, recipe.file)
    assert [method.name for method in config.parsed_methods()] == ["none", "dfmsd"]
    assert config.data.root == "coco"
    assert len(config.pairs) == 1
    assert Path(config.out).name == recipe.name
    assert config.epochs in (12, 24)


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_used_and_published_is_said(recipe: Recipe) -> None:
    header = "\n".join(recipe.header)
    published = PUBLISHED.search(header)
    assert published is not None
    config = read_config(CompareConfig, recipe.file)
    named = [config.student.arch, *config.pairs["coco"]]
    for name in (Path(re.split("[:,]", text)[1]).stem for text in named if text.startswith("mmdet:")):
        assert name in header  # in the command that fetches it
    if "nothing" in published[1]:
        return
    assert "arXiv" in header
    assert f"{config.epochs} epochs" in header
    row = next(line for line in (ROOT / "docs" / "recipes.md").read_text().splitlines() if f"| `{recipe.name}`" in line)
    assert re.findall(r"\d\d\.\d", row) == re.findall(r"\d\d\.\d", published[1])


def test_recipes_come_with_the_package() -> None:
    shipped = {file.name for file in (files("dfmsd") / "recipes" / "coco").iterdir()}
    assert {f"{recipe.name}.yaml" for recipe in list_recipes()} == shipped


def test_run_is_a_comparison_with_the_flags_that_follow() -> None:
    file = str(find_recipe("gfl_r50_from_gfl_r101").file)
    command = ["recipe", "run", "gfl_r50_from_gfl_r101"]
    assert as_comparison([*command, "--jobs", "2"]) == ["compare", "--config", file, "--jobs", "2"]
    for unchanged in (["recipe", "run"], [*command, "--dry-run"], ["recipe", "list"], [*command, "--help"], []):
        assert as_comparison(unchanged) == unchanged


def test_the_command_lists_shows_and_runs(dfmsd: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, _ = dfmsd("recipe", "list")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == [recipe.name for recipe in list_recipes()]
    status, out, _ = dfmsd("recipe", "show", "gfl_r50_from_gfl_r101")
    assert out == find_recipe("gfl_r50_from_gfl_r101").text
    tried: list[Any] = []

    def try_recipe(recipe: Recipe) -> dict[str, Trial]:
        tried.append(recipe.name)
        return {"none": Trial(2**30, {"T4": 99.6}), "dfmsd": Trial(3 * 2**29, {"T4": 0.4})}

    monkeypatch.setattr("dfmsd.recipes.trial.try_recipe", try_recipe)
    status, out, _ = dfmsd("recipe", "run", "gfl_r50_from_gfl_r101", "--dry-run")
    assert tried == ["gfl_r50_from_gfl_r101"]
    assert "baseline 40.2, teacher 44.7, FGD 43.5" in out
    assert re.search(r"none +│ 1\.0 GiB +│ 100 h", out)
    assert re.search(r"dfmsd +│ 1\.5 GiB +│ 24 min", out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "gfl_r50_from_gfl_r10"], "unknown name 'gfl_r50_from_gfl_r10'; did you mean gfl_r50_from_gfl_r101"),
        (["run", "nonsense", "--jobs", "2"], "recipe: unknown name 'nonsense'; there are "),
        (["show"], "recipe show: its name is missing; dfmsd recipe list prints them"),
        (["run", "--dry-run"], "recipe run: its name is missing"),
        (["list", "--dry-run"], "--dry-run: it belongs to dfmsd recipe run NAME"),
        (["build"], "build"),
        (["run", "gfl_r50_from_gfl_r101"], "coco"),
        (["run", "gfl_r50_from_gfl_r101", "--epoch", "3"], "epoch"),
    ],
)
def test_a_bad_command_is_refused(dfmsd: Command, arguments: list[str], message: str) -> None:
    assert message in dfmsd.refusal("recipe", *arguments)
