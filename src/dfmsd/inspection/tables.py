"""Tables of the facts about a data set, and their print on the terminal."""

from __future__ import annotations

from itertools import pairwise

from rich.console import Console
from rich.table import Column, Table

from dfmsd.inspection.facts import DataFacts

Content = tuple[list[str], list[list[str]]]
"""Header and rows."""
SMALL = (0.0, 8.0, 16.0, 32.0)
"""Bounds of sizes in pixels, besides those of the levels."""


def split_table(facts: DataFacts) -> Content:
    """Return header and rows of the table of splits."""
    rows = [
        [name, str(split.images), str(sum(split.objects.values())), str(split.empty), str(split.crowds)]
        for name, split in facts.facts.items()
    ]
    return ["split", "images", "objects", "images without", "crowd regions"], rows


def class_table(facts: DataFacts) -> Content:
    """Return header and rows of the table of classes."""
    names = list(dict.fromkeys(name for split in facts.facts.values() for name in split.objects))
    rows = [[name, *(str(split.objects.get(name, 0)) for split in facts.facts.values())] for name in names]
    return ["class", *facts.facts], rows


def size_table(facts: DataFacts) -> Content:
    """Return header and rows of the table of object sizes: shares of the objects, and the level for each size."""
    bounds = sorted({*SMALL, *(bound for level in facts.levels for bound in level.sizes or ())})
    rows = []
    for lower, upper in pairwise(bounds):
        responsible = next((level for level in facts.levels if level.sizes and level.sizes[1] > lower), None)
        within = {name: (split.sizes >= lower) & (split.sizes < upper) for name, split in facts.facts.items()}
        shares = [f"{mask.float().mean():.0%}" if len(mask) else "–" for mask in within.values()]
        rows.append([f"{lower:.0f} to {upper:.0f}", responsible.name if responsible else "–", *shares])
    return ["object size", "level", *facts.facts], rows


def print_facts(facts: DataFacts, console: Console) -> None:
    """Print layout, tables, and what is unlikely to be meant."""
    console.print(f"{facts.layout.name} layout in {facts.layout.root}", highlight=False)
    if facts.facts:
        _print("", split_table(facts), console)
        _print("objects by class", class_table(facts), console)
        _print(f"objects by size at {facts.image_size} pixels", size_table(facts), console)
    for finding in facts.findings:
        console.print(f"- {finding}", highlight=False, soft_wrap=True)
    if not (facts.findings or facts.errors):
        console.print("nothing suspicious", highlight=False)


def _print(title: str, content: Content, console: Console) -> None:
    header, rows = content
    table = Table(Column(header[0], overflow="fold"), title=title or None)
    for name in header[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
