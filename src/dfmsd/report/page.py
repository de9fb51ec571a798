"""The page itself: sections in, one self-contained HTML file out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from markupsafe import Markup

from dfmsd.files import write_text


@dataclass(frozen=True)
class Table:
    """Rows under a header; the first column names the row, the others are numbers as they shall be read."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """One part of a page; what is not given is not shown."""

    title: str
    notes: Sequence[str] = field(default_factory=tuple)
    """Sentences above the content; also what stands there when there is no content."""
    table: Table | None = None
    figure: Markup | None = None
    """An ``<svg>`` element; the only thing that reaches the page unescaped."""
    text: str | None = None
    """Shown as it is, in a fixed-width font, folded."""


def write_report(path: Path, title: str, sections: Sequence[Section]) -> Path:
    """Write one HTML file that needs nothing else: style and figures are inside, every text is escaped.

    Gives the path back.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dfmsd.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html").render(title=title, sections=sections)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return path
