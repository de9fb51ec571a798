from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from tests.helpers.annotations import change, edit
from tests.helpers.layouts import LAYOUTS, SPLITS, Picture, close, coco, read, roboflow_voc, voc, yolo

from dfmsd.cli.main import run
from dfmsd.data import open_split
from dfmsd.data.convert import convert
from dfmsd.data.formats import recognize
from dfmsd.errors import DfmsdError

TO = {"coco": "COCO", "yolo": "YOLO", "voc": "Pascal VOC", "shards": "COCO"}


@pytest.mark.parametrize("to", TO)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_comes_back_from_every_format(tmp_path: Path, layout: str, to: Any) -> None:
    counts = convert(LAYOUTS[layout](tmp_path / "source"), tmp_path / "out", to)
    assert counts == {"train": (3, 3), "val": (1, 2)}
    assert recognize(tmp_path / "out").name == TO[to]
    for split, wanted in SPLITS.items():
        assert close(read(tmp_path / "out", split), wanted)


def test_the_command_prints_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["convert", str(voc(tmp_path / "source")), "--out", str(tmp_path / "out")])
    assert capsys.readouterr().out == "train: 3 images, 3 boxes\nval: 1 images, 2 boxes\n"
    assert recognize(tmp_path / "out").name == "COCO"


def test_crowds_stay_in_coco_and_are_counted_elsewhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = coco(tmp_path / "source")
    edit(root, change("annotations", iscrowd=1))
    assert convert(root, tmp_path / "coco")["train"] == (3, 3)
    truth = json.loads((tmp_path / "coco" / "annotations" / "instances_train.json").read_text())
    assert [entry["iscrowd"] for entry in truth["annotations"]] == [1, 0, 0]
    assert not caplog.records
    assert convert(root, tmp_path / "yolo", "yolo")["train"] == (3, 2)
    assert "1 crowds and boxes outside their image are left out: yolo has none" in caplog.text


@pytest.mark.parametrize("to", TO)
def test_boxes_of_less_than_a_pixel_are_kept(tmp_path: Path, to: Any) -> None:
    boxes = [("a", (3.0, 4.0, 3.25, 9.0)), ("a", (1.5, 2.5, 1.75, 2.75)), ("b", (0.0, 0.0, 9.0, 0.5))]
    splits = {"train": {"x": Picture(20, 20, boxes)}}
    convert(coco(tmp_path / "source", splits), tmp_path / "out", to)
    assert close(read(tmp_path / "out", "train"), splits["train"])


@pytest.mark.parametrize("to", TO)
def test_images_of_the_same_name_are_kept_apart(tmp_path: Path, to: Any) -> None:
    pictures = {"a": SPLITS["train"]["a"], "deep/a": SPLITS["val"]["e"]}
    splits = {"train": pictures, "val": {"a": SPLITS["train"]["c.d"]}}
    for split in splits:
        (tmp_path / "source" / split / "deep").mkdir(parents=True)
    convert(coco(tmp_path / "source", splits), tmp_path / "out", to)
    assert close(read(tmp_path / "out", "train"), {"a": pictures["a"], "a_2": pictures["deep/a"]})
    assert [*read(tmp_path / "out", "val").values()] == [splits["val"]["a"]]


@pytest.mark.parametrize("to", TO)
def test_images_without_a_suffix_get_that_of_their_format(tmp_path: Path, to: Any) -> None:
    root = coco(tmp_path / "source")
    for name in ("a", "c.d"):
        (root / "train" / f"{name}.png").rename(root / "train" / name)
    edit(root, lambda raw: [image.update(file_name=image["file_name"][:-4]) for image in raw["images"]])
    (root / "train" / "b (1).png").unlink()
    Image.new("RGB", (64, 48)).save(root / "train" / "b (1)", "JPEG")
    convert(root, tmp_path / "out", to)
    assert close(read(tmp_path / "out", "train"), SPLITS["train"])
    names = {record.path.name for record in open_split(tmp_path / "out", "train").records}
    assert names == {"a.png", "b (1).jpg", "c.d.png"}


def test_the_yaml_file_says_nothing_of_its_folder(tmp_path: Path) -> None:
    convert(coco(tmp_path / "source"), tmp_path / "out", "yolo")
    assert list(yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())) == ["train", "val", "names"]


@pytest.mark.parametrize("to", TO)
def test_classes_of_one_split_alone_have_one_number_in_all(tmp_path: Path, to: Any) -> None:
    splits = {
        "train": {"a": Picture(20, 20, [("ray", (1, 1, 9, 9))])},
        "val": {"b": Picture(20, 20, [("eel", (1, 1, 9, 9)), ("ray", (2, 2, 8, 8))])},
    }
    convert(roboflow_voc(tmp_path / "source", splits), tmp_path / "out", to)
    for split, wanted in splits.items():
        assert close(read(tmp_path / "out", split), wanted)
    if to != "voc":
        assert {open_split(tmp_path / "out", split).class_names for split in splits} == {("eel", "ray")}


def test_names_that_yaml_reads_otherwise_come_back(tmp_path: Path) -> None:
    splits = {"train": {"a": Picture(20, 20, [(name, (1, 1, 9, 9)) for name in ("1", "null", "yes", "Ö: x")])}}
    convert(coco(tmp_path / "source", splits), tmp_path / "out", "yolo")
    assert close(read(tmp_path / "out", "train"), splits["train"])


def test_a_bad_source_leaves_nothing_behind(tmp_path: Path) -> None:
    source = yolo(tmp_path / "source")
    (source / "labels" / "train" / "a.txt").write_text("nonsense")
    with pytest.raises(DfmsdError, match=r"a\.txt: line 1 is not a row of numbers"):
        convert(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_data_without_objects_are_refused(tmp_path: Path) -> None:
    source = yolo(tmp_path / "source")
    for file in source.glob("labels/*/*.txt"):
        file.write_text("")
    with pytest.raises(DfmsdError, match="source: no annotated object in train, val; annotate objects"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_nonempty_output_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(DfmsdError, match="not an empty folder"):
        convert(yolo(tmp_path / "source"), tmp_path / "out")
