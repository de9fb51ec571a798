"""What README.md and docs/ show: code blocks, the lines of the shell, configs under their names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
HISTORY = ("results-adamw.md", "lab-notebook.md")
"""Pages whose commands belong to the commits that they name."""
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in HISTORY),
]
FENCED = re.compile(r"^```(\w+)(?: title=\"(.*?)\")?\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"^ {4}((?:dfmsd|make|pip|python) .*)$", flags=re.MULTILINE)
WRITTEN = {"my-teacher.yaml": "teacher.yaml"}
"""Config that a command writes, and later ones read -> a documented one of the same kind."""
UNTITLED = {"README.md": "my.yaml", "compare.md": "compare.yaml"}
"""Page -> the name by which the commands call its config that has no title."""


class Block(NamedTuple):
    """A fenced code block."""

    page: str
    language: str
    title: str
    text: str


def blocks(page: Path, *languages: str) -> list[Block]:
    """The code blocks of a page in some languages."""
    found = FENCED.findall(page.read_text(encoding="utf-8"))
    return [Block(page.name, *one) for one in found if one[0] in languages]


def shell_lines(page: Path) -> list[list[str]]:
    """The words of every command of a page, also of indented ones; a backslash goes on with the next line."""
    fenced = [block.text for block in blocks(page, "bash", "console")]
    outside = FENCED.sub("", page.read_text(encoding="utf-8"))
    text = "\n".join([*fenced, *INDENTED.findall(outside)])
    lines = [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line]


def configs() -> Iterator[tuple[str, str]]:
    """Name and text of every config."""
    for page in PAGES:
        for block in blocks(page, "yaml"):
            name = block.title or UNTITLED[page.name]
            yield from ((other, block.text) for other in (name, *(new for new, old in WRITTEN.items() if old == name)))
