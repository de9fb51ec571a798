from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.layouts import WANTED, Boxes, voc, yolo

from dfmsd.cli.main import run
from dfmsd.data import open_split
from dfmsd.data.convert import convert
from dfmsd.errors import DfmsdError

pytest.importorskip("supervision", reason="needs pip install 'dfmsd[convert]'")


def read(root: Path, split: str) -> Boxes:
    """Read the result with `DetectionSplit`."""
    data = open_split(root, split)
    found: Boxes = {}
    for index, record in enumerate(data.records):
        pixels, target = data[index]
        assert pixels.shape == (3, 48, 64)
        boxes = [tuple(round(float(v)) for v in box) for box in target["boxes"]]
        names = [data.class_names[int(label)] for label in target["labels"]]
        found[Path(record.path).stem] = list(zip(names, boxes, strict=True))  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("layout", ["yolo", "voc"])
@pytest.mark.parametrize("usual", [True, False])
def test_boxes_and_classes_are_preserved(tmp_path: Path, layout: Any, usual: bool) -> None:
    make = {"yolo": yolo, "voc": voc}[layout]
    counts = convert(make(tmp_path / "source", usual), layout, tmp_path / "out")
    assert counts == {"train": (2, 2), "val": (1, 1)}
    assert {split: read(tmp_path / "out", split) for split in WANTED} == WANTED
    lists = [
        [c["name"] for c in json.loads(path.read_text())["categories"]]
        for path in sorted((tmp_path / "out" / "annotations").iterdir())
    ]
    assert lists[0] == lists[1]


def test_the_command_prints_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["convert", str(voc(tmp_path / "source")), "--from", "voc", "--out", str(tmp_path / "out")])
    assert capsys.readouterr().out == "train: 2 images, 2 boxes\nval: 1 images, 1 boxes\n"


@pytest.mark.parametrize(
    ("layout", "broken", "message"),
    [
        ("yolo", "data.yaml", r"data\.yaml is missing"),
        ("yolo", "images/val", r"data\.yaml: val: no folder images/val"),
        ("yolo", "labels/train", r"labels/train is missing"),
        ("voc", "ImageSets", r"train\.txt is missing"),
        ("voc", "JPEGImages/c.jpg", r"val\.txt: no image c in"),
        ("voc", "Annotations", r"neither Annotations nor a folder train"),
    ],
)
def test_missing_files_are_named_and_nothing_is_written(tmp_path: Path, layout: Any, broken: str, message: str) -> None:
    source = {"yolo": yolo, "voc": voc}[layout](tmp_path / "source")
    path = source / broken
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DfmsdError, match=message):
        convert(source, layout, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("layout", "file"), [("yolo", "labels/train/a.txt"), ("voc", "Annotations/a.xml")])
def test_a_bad_label_file_is_refused(tmp_path: Path, layout: Any, file: str) -> None:
    source = {"yolo": yolo, "voc": voc}[layout](tmp_path / "source")
    (source / file).write_text("nonsense")
    with pytest.raises(DfmsdError, match=f"cannot be read as {layout}"):
        convert(source, layout, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_nonempty_output_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(DfmsdError, match="not empty"):
        convert(yolo(tmp_path / "source"), "yolo", tmp_path / "out")
