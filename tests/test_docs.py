"""The command line accepts the commands and configs of README.md and docs/; architecture.md lists every module.

`tests/test_docs_run.py` runs them.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.helpers.documented import PAGES, ROOT, blocks, configs, shell_lines

from dfmsd.cli import main as cli
from dfmsd.cli.recipes import as_comparison
from dfmsd.comparison.config import CompareConfig
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.configfile import read_config
from dfmsd.tuning.config import TuneConfig


def commands(page: Path) -> list[list[str]]:
    """Return the arguments of every `dfmsd` call of a page, however it is launched."""
    return [line[line.index("dfmsd") + 1 :] for line in shell_lines(page) if "dfmsd" in line]


CASES = [pytest.param(line, id=f"{page.name}:{' '.join(line)[:60]}") for page in PAGES for line in commands(page)]


@pytest.mark.parametrize("line", CASES)
def test_commands_parse(line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("benchmarks", "configs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for name, text in configs():
        (tmp_path / name).write_text(text)
    ours = line[: next((place for place, word in enumerate(line) if word in ("&&", "$(test")), None)]
    seen = []
    command = as_comparison(ours)[0]
    monkeypatch.setitem(cli.COMMANDS, command, cli.COMMANDS[command]._replace(run=seen.append))
    cli.run(ours)
    assert len(seen) == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configs_parse(page: Path, tmp_path: Path) -> None:
    kinds = {"tune": TuneConfig, "pairs": CompareConfig, "stages": DistillConfig, "model": TrainConfig}
    for block in blocks(page, "yaml"):
        path = tmp_path / "config.yaml"
        path.write_text(block.text)
        kind = next(kind for key, kind in kinds.items() if re.search(rf"^{key}:", block.text, flags=re.MULTILINE))
        read_config(kind, path)


def test_documented_make_targets_and_extras_exist() -> None:
    extras = re.findall(r"^([a-z]+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line for page in [*PAGES, ROOT / "CONTRIBUTING.md"] for line in shell_lines(page)]
    for line in lines:
        if line[0] == "make":
            subprocess.run([*line, "--dry-run"], cwd=ROOT, check=True, capture_output=True)
    named = [name for line in lines if line[0] == "pip" for name in re.findall(r"\[(.*?)\]", " ".join(line))]
    assert len(named) >= 2
    assert {extra for names in named for extra in names.split(",")} <= set(extras)


def test_links_of_the_front_pages_exist() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / name).read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{name}: {target}"


def pages_of(nav: list[Any]) -> set[str]:
    """Return the pages of the menu of mkdocs.yml, whose sections are mappings to lists."""
    sections = [pages for entry in nav if isinstance(entry, dict) for pages in entry.values()]
    return {entry for entry in nav if isinstance(entry, str)}.union(*map(pages_of, sections))


def test_the_first_page_links_every_other() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    docs = ROOT / "docs"
    linked = set(re.findall(r"\]\((\S+?\.md)\)", (docs / "index.md").read_text(encoding="utf-8")))
    assert linked | {"index.md"} == pages_of(nav) == {page.name for page in docs.glob("*.md")}


def listed_modules() -> set[str]:
    """Return the module paths in the tree of architecture.md, which indents a room's files by two spaces."""
    found, rooms = set(), [""]
    for line in blocks(ROOT / "docs" / "architecture.md", "text")[0].text.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        if room := re.match(r"\s*(\S+/)", line):
            rooms = [*rooms[:depth], room[1]]
        else:
            found |= {"".join(rooms[:depth]) + name for name in re.findall(r"\w+\.py", line)}
    return found


def test_architecture_lists_every_module() -> None:
    paths = [path.relative_to(ROOT) for path in (ROOT / "src" / "dfmsd").rglob("*.py")]
    packages = {path for path in paths if path.name == "__init__.py" and path.parts != ("src", "dfmsd", "__init__.py")}
    assert listed_modules() == {path.as_posix() for path in set(paths) - packages}


@functools.cache
def source_messages() -> list[str]:
    """Return every string of the source, with ``...`` for what an f-string fills in."""
    messages = []
    for path in (ROOT / "src" / "dfmsd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "..." for part in node.values]
                messages.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                messages.append(node.value)
    return messages


def quoted_messages() -> list[str]:
    """Return the error messages in the first column of troubleshooting.md."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?`) \|", text, flags=re.MULTILINE)
    return [message for row in rows for message in re.findall(r"`(.*?)`", row)]


@pytest.mark.parametrize("message", quoted_messages())
def test_troubleshooting_quotes_messages_of_the_source(message: str) -> None:
    pattern = re.compile(".*".join(re.escape(part.strip()) for part in message.split("...")))
    assert any(pattern.search(text) for text in source_messages())
