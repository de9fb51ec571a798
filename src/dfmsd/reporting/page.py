"""The page itself: sections in, one self-contained HTML file out."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jinja2
from markupsafe import Markup

from dfmsd.utils.files import write_text

Look = Literal["truth", "right", "wrong"]


@dataclass(frozen=True)
class Table:
    """Rows under a header; the first column names the row, the others are numbers as they shall be read."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """An interactive plot."""

    title: str
    traces: Sequence[Mapping[str, Any]]
    """Of plotly, without colours, which follow the reader's light or dark scheme; no NaN."""
    layout: Mapping[str, Any]
    alt: str
    """What it shows, in words."""
    values: Table | None = None
    """The same in numbers, for those who do not see it."""
    height: int = 350
    """Pixels."""


class Box(NamedTuple):
    """A rectangle on a picture, in its pixels."""

    x: float
    y: float
    width: float
    height: float
    look: Look
    label: str
    """What it is, for those who point at it."""
    tag: str
    """What stands beside it."""


@dataclass(frozen=True)
class Picture:
    """A bitmap, with boxes on it or without."""

    content: bytes
    kind: Literal["png", "jpeg"]
    size: tuple[int, int]
    """Width and height in pixels."""
    alt: str
    caption: str = ""
    boxes: Sequence[Box] = ()

    @property
    def source(self) -> str:
        """The bitmap as a URL."""
        return f"data:image/{self.kind};base64,{base64.b64encode(self.content).decode()}"


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side."""

    title: str
    pictures: Sequence[Picture]
    wide: bool = False
    """Keep their size, and let the reader scroll, instead of fitting them into the page."""


@dataclass(frozen=True)
class Section:
    """One part of a page; what is not given is not shown."""

    title: str
    notes: Sequence[str] = field(default_factory=tuple)
    """Sentences above the content; also what stands there when there is no content."""
    table: Table | None = None
    figures: Sequence[Figure] = ()
    galleries: Sequence[Gallery] = ()
    text: str | None = None
    """Shown as it is, in a fixed-width font, folded."""
    links: Sequence[tuple[str, str]] = ()
    """Text and address, relative to the page."""
    lead: str = ""
    """What it comes to, in a sentence or two above everything else."""


def write_report(path: Path, title: str, sections: Sequence[Section]) -> Path:
    """Write one HTML file that needs nothing else: style, scripts and pictures are inside, every text is escaped.

    No other script than the two of the page runs in it: the browser is told their hashes.

    Gives the path back.
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
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return path


def _scripts(environment: jinja2.Environment) -> list[Markup]:
    """Give plotly.js and what draws with it, as the text of script elements."""
    from plotly.offline import get_plotlyjs

    # a browser hashes line ends as \n, whatever the file has
    texts = (get_plotlyjs(), environment.get_template("report.js").render())
    return [Markup("\n".join(text.splitlines())) for text in texts]


def _hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
