"""Write pages of the documentation from the templates beside this file and the JSON files of benchmarks/results.

    python benchmarks/pages/write.py

The measured numbers of a page are expressions of its template, so that none can differ from its JSON file. A test fails
where a page is not what this script writes.
"""

from __future__ import annotations

from pathlib import Path

import figure
import yaml
from claims import answers
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from scores import RESULTS, comparison, lead, peer, read

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs"
PAGES = ["results.md", "costs.md"]


def comparisons() -> dict[str, list[str]]:
    """Return the comparisons of ``comparisons.yaml``: name of the JSON file -> arguments of ``dfmsd compare``."""
    listed: dict[str, str | list[str]] = yaml.safe_load((HERE / "comparisons.yaml").read_text(encoding="utf-8"))
    return {name: [calls] if isinstance(calls, str) else calls for name, calls in listed.items()}


def missing() -> str:
    """Return the names of the comparisons that have no results yet."""
    return ", ".join(f"`{name}`" for name in comparisons() if not (RESULTS / f"{name}.json").exists())


def command(*names: str) -> str:
    """Return the commands of comparisons and the names of their files, as an indented block."""
    known = comparisons()
    calls = [f"dfmsd compare {arguments}" for name in names for arguments in known[name]]
    files = ", ".join(f"{name}.json" for name in names)
    return "\n".join(f"    {line}" for line in (*calls, f"# benchmarks/results/{files}"))


def render(page: str) -> str:
    """Return a page of `PAGES`."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # markdown, from files of this repository
    )
    functions = [answers, command, comparison, lead, missing, peer, read]
    environment.globals |= {function.__name__: function for function in functions}
    return environment.get_template(f"{page}.jinja").render()


def main() -> None:
    """Write the pages and their pictures."""
    figure.draw()
    for page in PAGES:
        (DOCS / page).write_text(render(page), encoding="utf-8")


if __name__ == "__main__":
    main()
