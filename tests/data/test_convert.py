from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dfmsd.cli.main import run
from dfmsd.data.coco import CocoDetection
from dfmsd.data.convert import convert
from dfmsd.errors import DfmsdError

pytest.importorskip("supervision", reason="needs pip install 'dfmsd[convert]'")

Boxes = dict[str, list[tuple[str, tuple[int, int, int, int]]]]
WANTED: dict[str, Boxes] = {
    "train": {"a": [("ray", (8, 16, 24, 48)), ("eel", (0, 0, 32, 32))], "b": []},
    "val": {"c": [("eel", (16, 8, 48, 40))]},
}
"""Split -> image -> class and box, xyxy in pixels; images are 64 x 48 pixels."""


def image(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), (10, 20, 30)).save(folder / f"{name}.jpg")


def xml(boxes: list[tuple[str, tuple[int, int, int, int]]]) -> str:
    """Write an XML file; corners are counted from 1 and inclusive."""
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax>"
        f"<ymax>{y2}</ymax></bndbox></object>"
        for name, (x1, y1, x2, y2) in boxes
    )
    return f"<annotation><size><width>64</width><height>48</height><depth>3</depth></size>{objects}</annotation>"


def yolo(root: Path, by_kind: bool = True) -> Path:
    """Write `images/train` and `labels/train`, or `train/images` and `train/labels` with paths as Roboflow does."""
    for split, images in WANTED.items():
        for name, boxes in images.items():
            pictures, labels = (
                root / (f"{kind}/{split}" if by_kind else f"{split}/{kind}") for kind in ("images", "labels")
            )
            image(pictures, name)
            labels.mkdir(parents=True, exist_ok=True)
            rows = [
                f"{['ray', 'eel'].index(c)} {(x1 + x2) / 128} {(y1 + y2) / 96} {(x2 - x1) / 64} {(y2 - y1) / 48}"
                for c, (x1, y1, x2, y2) in boxes
            ]
            (labels / f"{name}.txt").write_text("\n".join(rows))
    paths = ("images/train", "images/val") if by_kind else ("../train/images", "../val/images")
    (root / "data.yaml").write_text(f"train: {paths[0]}\nval: {paths[1]}\nnames: [ray, eel]\n")
    return root


def voc(root: Path, lists: bool = True) -> Path:
    """Write the layout of the challenge, or one folder per split."""
    for split, images in WANTED.items():
        for name, boxes in images.items():
            pictures, labels = (root / "JPEGImages", root / "Annotations") if lists else (root / split,) * 2
            image(pictures, name)
            labels.mkdir(parents=True, exist_ok=True)
            (labels / f"{name}.xml").write_text(xml(boxes))
        if lists:
            (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
            (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(images))
    return root


def read(root: Path, split: str) -> Boxes:
    """Read the result with `CocoDetection`."""
    data = CocoDetection(root, split)
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
