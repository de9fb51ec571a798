"""A folder with sound input, for tests that spoil a part of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.helpers.command import STUDENT, Command

from dfmsd.detectors import DetectorConfig
from dfmsd.engine.config import TrainConfig
from dfmsd.engine.saved_config import write_config

TRUTH: dict[str, Any] = {
    "images": [
        {"id": 1, "file_name": "0.png", "width": 40, "height": 30},
        {"id": 2, "file_name": "1.png", "width": 40, "height": 30},
    ],
    "categories": [{"id": 1, "name": "square"}, {"id": 3, "name": "disc"}],
    "annotations": [{"id": 7, "image_id": 1, "category_id": 3, "bbox": [2, 3, 20, 10], "area": 200, "iscrowd": 0}],
}
CONFIG: dict[str, Any] = {
    "data": {"root": "data", "image_size": 64, "batch_size": 2},
    "student": STUDENT,
    "stages": [{"epochs": 1}],
    "out": "run",
}
LONG = "a" * 5000
"""A name that no file has."""
RESULTS = ("metrics.json", "student.safetensors", "student.json", "report.html")


@pytest.fixture
def dfmsd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command in a folder with a sound data set, ``data``, and a sound config, ``good.yaml``."""
    for split in ("train", "val"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for name in ("0.png", "1.png"):
            Image.new("RGB", (40, 30), "grey").save(tmp_path / "data" / split / name)
    (tmp_path / "data" / "annotations").mkdir()
    for split in ("train", "val"):
        truth_file(tmp_path, split).write_text(json.dumps(TRUTH))
    command = Command(tmp_path, monkeypatch, capsys)
    command.write("good.yaml", CONFIG)
    return command


def truth_file(folder: Path, split: str = "train") -> Path:
    return folder / "data" / "annotations" / f"instances_{split}.json"


def unfinished_run(folder: Path) -> Path:
    """Write the folder of a run that has hardly begun: its config alone."""
    run = folder / "run"
    run.mkdir()
    config = TrainConfig(out="run", epochs=1)
    config.data.root, config.data.image_size, config.data.batch_size = "data", 64, 2
    config.model = DetectorConfig(**STUDENT)  # type: ignore[arg-type]
    write_config(config, run)
    return run


def says(error: str, pieces: tuple[str, ...]) -> None:
    for piece in pieces:
        assert piece in error, f"{piece!r} is not in {error!r}"
