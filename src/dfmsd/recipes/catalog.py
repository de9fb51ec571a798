"""The recipes that come with the package: comparison configs whose comments say what was published."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from dfmsd.errors import DfmsdError, suggest

FOLDER = Path(__file__).parent / "coco"


@dataclass(frozen=True)
class Recipe:
    """A comparison with published results.

    Args:
        file: its config, for `dfmsd compare`.
    """

    file: Path

    @property
    def name(self) -> str:
        """Its name."""
        return self.file.stem

    @property
    def text(self) -> str:
        """The config as it is written."""
        return self.file.read_text(encoding="utf-8")

    @property
    def header(self) -> list[str]:
        """The comment at its beginning: a title, published results, and what differs from them."""
        lines = takewhile(lambda line: line.startswith("#"), self.text.splitlines())
        return [line.removeprefix("#").removeprefix(" ") for line in lines]


def list_recipes() -> list[Recipe]:
    """Return all recipes, by name."""
    return [Recipe(file) for file in sorted(FOLDER.glob("*.yaml"))]


def find_recipe(name: str) -> Recipe:
    """Return a recipe.

    Args:
        name: of the recipe.

    Raises:
        DfmsdError: there is no such recipe.
    """
    recipes = {recipe.name: recipe for recipe in list_recipes()}
    if name not in recipes:
        hint = suggest(name, recipes, f"there are {', '.join(recipes)}")
        raise DfmsdError(f"recipe: unknown name {name!r}; {hint}")
    return recipes[name]
