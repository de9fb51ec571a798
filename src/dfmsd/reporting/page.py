"""HTML report pages: sections in, one self-contained file out."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jinja2
from markupsafe import Markup

from dfmsd.utils.files import write_output

BoxStyle = Literal["truth", "correct", "wrong"]


@dataclass(frozen=True)
class Table:
    """Rows below a header; the first column names the row, the others hold formatted numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """An interactive plot."""

    title: str
    traces: Sequence[Mapping[str, Any]]
    """Plotly traces without colors, which follow the reader's light or dark scheme, and without NaN."""
    layout: Mapping[str, Any]
    """Plotly layout."""
    alt: str
    """Text alternative."""
    values: Table | None = None
    """The plotted values as a table."""
    height: int = 350
    """In pixels."""


class Box(NamedTuple):
    """A rectangle on a picture, in the picture's pixels."""

    x: float
    y: float
    width: float
    height: float
    style: BoxStyle
    label: str
    """Tooltip."""
    tag: str
    """Text drawn at the box."""


@dataclass(frozen=True)
class Picture:
    """A bitmap, optionally with boxes on it."""

    content: bytes
    kind: Literal["png", "jpeg"]
    size: tuple[int, int]
    """Width and height in pixels."""
    alt: str
    caption: str = ""
    boxes: Sequence[Box] = ()

    @property
    def source(self) -> str:
        """The bitmap as a data URL."""
        return f"data:image/{self.kind};base64,{base64.b64encode(self.content).decode()}"


@dataclass(frozen=True)
class Gallery:
    """Pictures in a row."""

    title: str
    pictures: Sequence[Picture]
    wide: bool = False
    """Show pictures at full size and scroll, instead of fitting them to the page."""


@dataclass(frozen=True)
class Section:
    """One section of a page; empty parts are left out."""

    title: str
    notes: Sequence[str] = field(default_factory=tuple)
    """Paragraphs above the content, or in place of missing content."""
    table: Table | None = None
    figures: Sequence[Figure] = ()
    galleries: Sequence[Gallery] = ()
    text: str | None = None
    """Preformatted text, collapsed."""
    links: Sequence[tuple[str, str]] = ()
    """Text and URL, relative to the page."""
    lead: str = ""
    """Summary in one or two sentences, shown first."""


def write_page(path: Path, title: str, sections: Sequence[Section]) -> Path:
    """Write a self-contained HTML file: style, scripts and pictures are embedded, and all text is escaped.

    Only the page's own two scripts can run: a Content Security Policy lists their hashes.

    Returns:
        ``path``.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dfmsd.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scripts = _scripts(environment) if any(section.figures for section in sections) else []
    page = environment.get_template("page.html").render(
        title=title, sections=sections, scripts=scripts, hashes=[_hash(script) for script in scripts]
    )
    write_output(path, page)
    return path


def _scripts(environment: jinja2.Environment) -> list[Markup]:
    """Return plotly.js and the page's own script."""
    from plotly.offline import get_plotlyjs

    # browsers normalize line endings to \n before hashing
    texts = (get_plotlyjs(), environment.get_template("report.js").render())
    return [Markup("\n".join(text.splitlines())) for text in texts]


def _hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
