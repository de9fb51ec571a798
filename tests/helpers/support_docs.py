"""``python -m tests.helpers.support_docs`` tries every combination and writes docs/support.json and docs/support.md."""

from __future__ import annotations

import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TypedDict

from rich.progress import track
from tests.helpers.support import COMBINATIONS, LOSS, STEPS, Row, Workshop, attempt

from dfmsd.engine.environment import describe_environment
from dfmsd.utils.files import write_json, write_text

DOCS = Path(__file__).resolve().parents[2] / "docs"
INTRODUCTION = """\
# Which detector teaches which

Written by `make support` from [support.json](support.json), where each combination was tried; not by hand. A small
teacher and a small student with random weights take {steps} steps under the default loss, `{loss}`. A number means that

- the loss stayed finite,
- a gradient reached every parameter of the student that is not frozen,
- the delivered student's file was loaded, and its detections are equal to the student's own, bit for bit,

and says how many levels of the student's pyramid learn from the teacher. `-` is refused before a run starts, see below.
Empty are combinations of the two large students, which were tried with one teacher only: `mask_rcnn` has the adapter of
`faster_rcnn`, and `ssd` that of `ssdlite`.

Names are those of `arch`; `mask_rcnn` stands for torchvision's Mask R-CNN, `ssd` for its SSD300, `hf:` for Hugging Face
transformers by their model type, `timm:` and `hf: backbone` for teachers without a detection head, and `nn.Module` for
any module in a `ModuleDetector`. MMDetection needs an environment of its own, in which `make test-mmdet` tries its
detectors.
"""
SKIPPED = ("pytorch-lightning", "faster-coco-eval")
"""Packages that have no part in a combination."""


class Support(TypedDict):
    """What docs/support.json holds."""

    loss: str
    steps: int
    packages: dict[str, str]
    rows: list[Row]


def try_all() -> Support:
    """Try all combinations."""
    packages = {**describe_environment()["packages"], "transformers": version("transformers")}
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder))
        rows = [attempt(*names, workshop) for names in track(COMBINATIONS, "teachers x students")]
    return {
        "loss": LOSS,
        "steps": STEPS,
        "packages": {name: number for name, number in packages.items() if name not in SKIPPED},
        "rows": rows,
    }


def render(found: Support) -> str:
    """Write the page."""
    rows = found["rows"]
    students = list(dict.fromkeys(row["student"] for row in rows))
    lines = [INTRODUCTION.format(steps=found["steps"], loss=found["loss"])]
    lines += [f"| teacher / student | {' | '.join(students)} |", "|---" * (len(students) + 1) + "|"]
    for teacher, own in by_teacher(rows).items():
        cells = {row["student"]: cell(row) for row in own}
        lines.append(f"| {teacher} | {' | '.join(cells.get(student, '') for student in students)} |")
    lines += ["", f"Only teach: {', '.join(name for name in by_teacher(rows) if name not in students)}."]
    for title, part in (
        ("Refused", [row for row in rows if row["refused"]]),
        ("Failed", [row for row in rows if not row["passed"] and not row["refused"]]),
    ):
        if part:
            lines += ["", f"## {title}", "", *notes(part)]
    lines += ["", "## Frozen parts of students", ""]
    lines += [
        f"- {name}: {parts}" for name, parts in {r["student"]: ", ".join(r["frozen"]) for r in rows}.items() if parts
    ]
    lines += ["", "## Versions", "", ", ".join(f"{name} {number}" for name, number in found["packages"].items()) + "."]
    return "\n".join(lines) + "\n"


def by_teacher(rows: list[Row]) -> dict[str, list[Row]]:
    """Group rows."""
    names = dict.fromkeys(row["teacher"] for row in rows)
    return {name: [row for row in rows if row["teacher"] == name] for name in names}


def cell(row: Row) -> str:
    """Tell one combination."""
    return str(len(row["levels"])) if row["passed"] else "-" if row["refused"] else "**fails**"


def notes(rows: list[Row]) -> list[str]:
    """Tell what was said of each teacher's combinations, by the text of the first; equal texts once."""
    said: dict[tuple[str, str], list[str]] = {}
    for teacher, own in by_teacher(rows).items():
        text = own[0]["note"].replace(f"teacher {teacher}:", "teacher ...:")
        said.setdefault((", ".join(row["student"] for row in own), text), []).append(teacher)
    return [f"- {', '.join(teachers)} with {students}: `{text}`" for (students, text), teachers in said.items()]


if __name__ == "__main__":
    support = try_all()
    write_json(DOCS / "support.json", support)
    write_text(DOCS / "support.md", render(json.loads((DOCS / "support.json").read_text(encoding="utf-8"))))
