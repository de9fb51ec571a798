from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

METRICS = {
    "AP": 0.4174,
    "AP50": 0.6231,
    "AP75": 0.3333,
    "APs": -1,
    "APm": 0.2,
    "APl": 0.5,
    "per_class": {"<script>alert(1)</script>": 0.7123, "absent": -1},
}

MakeRun = Callable[..., Path]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def log_rows(stages: int, distills: bool) -> list[dict[str, Any]]:
    """Return two epochs of three steps per stage; the second stage has no correlation for its last level."""
    rows = []
    for step in range(6 * stages):
        stage = step // 6 + 1
        row: dict[str, Any] = {"step": step, "epoch": step // 3, "stage": stage, "lr": 1e-3, "loss": 3.0 - 0.1 * step}
        row["task/classification"] = 1.0
        if distills:
            row |= {"mask/p3": 0.5, "sfa/p3": 0.25, "pearson/p3": 0.1 * stage, "pearson/p4": 0.3 if stage == 1 else ""}
        rows.append(row)
    return rows


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Return a function that writes a run folder: ``make_run(name, ap=..., stages=..., distills=...)``."""

    def make(name: str = "run", *, ap: float = METRICS["AP"], stages: int = 2, distills: bool = True) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "metrics.json").write_text(json.dumps({**METRICS, "AP": ap}))
        (folder / "student.json").write_text(json.dumps({"class_names": list(METRICS["per_class"])}))
        (folder / "environment.json").write_text(json.dumps({"torch": "2.9.9", "parameters": {"student": 1234567}}))
        (folder / "config.yaml").write_text("seed: 0\nnote: '</pre><b>bold</b>'\n")
        write_csv(folder / "log.csv", log_rows(stages, distills))
        validations = [
            {"epoch": epoch, "step": 3 * epoch + 2, "stage": epoch // 2 + 1, "AP": ap / 2, "AP50": 0.5, "AP75": 0.1}
            for epoch in range(2 * stages)
        ]
        write_csv(folder / "epochs.csv", validations)
        return folder

    return make
