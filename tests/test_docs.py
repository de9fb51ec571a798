"""The command line reads the commands and configs of README.md and docs/ as they stand there; the quickstart's run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from dfmsd import cli
from dfmsd.compare.config import CompareConfig
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.configfile import read_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)(?: title=\"(.*?)\")?\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
TINY = ["--data.image_size", "64", "--data.batch_size", "4"]
SMALL = ["backbone mobilenetv3_small_050", "pretrained false", "fpn_channels 16", "head_convs 1"]


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """Title and text of the code blocks."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(title, text) for language, title, text in found if language in languages]


def commands(page: Path) -> list[list[str]]:
    """Arguments of every `dfmsd` in a shell block; a backslash goes on with the next line."""
    text = "\n".join(block for _, block in blocks(page, "bash", "console"))
    lines = [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines()]
    return [line[1:] for line in lines if line[:1] == ["dfmsd"]]


CASES = [pytest.param(line, id=f"{page.name}:{' '.join(line)[:60]}") for page in PAGES for line in commands(page)]


@pytest.mark.parametrize("line", CASES)
def test_commands_are_read(line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    texts = {
        "my.yaml": "student.yaml",
        "compare.yaml": "",
        "teacher.yaml": "teacher.yaml",
        "student.yaml": "student.yaml",
    }
    quickstart = dict(blocks(ROOT / "docs" / "quickstart.md", "yaml"))
    for name, title in texts.items():
        text = quickstart[title] if title else "methods: [none]\npairs: {strong: [runs/teacher]}\nout: runs/compare\n"
        (tmp_path / name).write_text(text)
    seen = []
    build = cli.COMMANDS[line[0]][0]
    monkeypatch.setitem(cli.COMMANDS, line[0], (build, seen.append))
    cli.run(line)
    assert len(seen) == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configs_are_read(page: Path, tmp_path: Path) -> None:
    kinds = {"pairs": CompareConfig, "stages": DistillConfig, "model": TrainConfig}
    for _, text in blocks(page, "yaml"):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        kind = next(kind for key, kind in kinds.items() if re.search(rf"^{key}:", text, flags=re.MULTILINE))
        read_config(kind, path)


@pytest.mark.slow
def test_the_quickstart_runs(tiny_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line by line, in the order of the page; made small by flags."""
    page = ROOT / "docs" / "quickstart.md"
    monkeypatch.chdir(tmp_path)
    tiny_coco.rename(tmp_path / "data")
    for title, text in blocks(page, "yaml"):
        (tmp_path / title).write_text(text)
    model, student = (" ".join(f"--{part}.{option}" for option in SMALL).split() for part in ("model", "student"))
    run = [*TINY, "--stages.0.epochs", "1", *student]
    shrink = {"train": [*TINY, "--epochs", "1", *model], "check": run, "distill": run, "estimate": run}
    for line in commands(page):
        weak = ["--allow-weak-teacher"] if line[0] in ("check", "distill") else []
        cli.run([*line, *shrink.get(line[0], []), *weak])
    for name in ("teacher", "student", "baseline"):
        assert (tmp_path / "runs" / name / "student.safetensors").exists()
        assert (tmp_path / "runs" / name / "report.html").exists()
    assert (tmp_path / "pictures" / "contact_sheet.png").exists()
    assert (tmp_path / "predictions" / "predictions.json").exists()
