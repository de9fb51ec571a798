"""HTML pages as their tests see them."""

from __future__ import annotations

import json
from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags, references and texts of a page."""

    def __init__(self, path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.cells: list[list[str]] = []
        self.headings: list[str] = []
        self.captions: list[str] = []
        self.scripts: list[str] = []
        self.plots: list[dict] = []
        self.style = self.policy = ""
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)

    @property
    def plotted(self) -> set[str]:
        """Titles, legend entries and bar names."""
        traces = [trace for plot in self.plots for trace in plot["traces"]]
        categories = [y for trace in traces if trace["type"] == "bar" for y in trace["y"]]
        return {*self.captions, *(trace["name"] for trace in traces), *categories}

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in {"src", "href", "xlink:href", "srcset", "data"}]
        if tag == "tr":
            self.cells.append([])
        self.kind = dict(attrs).get("type")
        if dict(attrs).get("http-equiv") == "Content-Security-Policy":
            self.policy = dict(attrs)["content"]

    def handle_data(self, data):
        if self.tags and self.tags[-1] in {"td", "th"} and data.strip():
            self.cells[-1].append(data.strip())
        if self.tags and self.tags[-1] == "h2" and data.strip():
            self.headings.append(data.strip())
        if self.tags and self.tags[-1] == "figcaption" and data.strip():
            self.captions.append(data.strip())
        if self.lasttag == "style":
            self.style += data
        if self.lasttag == "script" and data.strip():
            if self.kind == "application/json":
                self.plots.append(json.loads(data))
            else:
                self.scripts.append(data)
