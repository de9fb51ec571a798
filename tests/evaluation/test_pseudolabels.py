from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.finder import Finder, draw_images

from dfmsd.data import CocoDataModule, DataConfig, open_split
from dfmsd.data.pseudo import PseudoConfig
from dfmsd.evaluation.pseudolabels import describe_labels, pseudo_labels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return draw_images(tmp_path / "more")


def label(root: Path, folder: Path, detector: Finder, *, holdout: float = 0, **pseudo: Any) -> dict[str, Any]:
    config = DataConfig(
        root=str(root),
        image_size=64,
        batch_size=3,
        unlabeled=str(folder),
        pseudo=PseudoConfig(**pseudo),
        holdout=holdout,
    )
    return pseudo_labels(detector, CocoDataModule(config))


def test_boxes_are_in_pixels_of_the_original_with_categories_of_the_data(tiny_root: Path, folder: Path) -> None:
    content = label(tiny_root, folder, Finder("disc", "square"), score=0.5, teacher="finder", image_size=128)
    names = {image["id"]: image["file_name"] for image in content["images"]}
    assert sorted(names.values()) == ["deep/right.png", "left.png", "none.png"]
    assert content["categories"] == [{"id": 1, "name": "square"}, {"id": 3, "name": "disc"}]
    boxes = {names[entry["image_id"]]: entry["bbox"] for entry in content["annotations"]}
    assert boxes.keys() == {"left.png", "deep/right.png"}
    assert boxes["left.png"] == pytest.approx([8, 8, 16, 16], abs=1)
    assert boxes["deep/right.png"] == pytest.approx([32, 8, 24, 32], abs=1)
    assert {entry["category_id"] for entry in content["annotations"]} == {1}
    assert all(entry["score"] == pytest.approx(0.9) for entry in content["annotations"])
    info = content["info"]
    assert (info["teacher"], info["image_size"], info["flip"]) == ("finder", 128, False)
    assert info["thresholds"] == {name: {"score": 0.5, "f1": None} for name in ("square", "disc")}


def test_the_file_is_a_data_set(tiny_root: Path, folder: Path) -> None:
    content = label(tiny_root, folder, Finder(), score=0.5)
    (folder.parent / "labels.json").write_text(json.dumps(content))
    config = DataConfig(str(folder.parent), train={"annotations": "labels.json", "images": "more"})
    split = open_split(config, "train")
    assert {record.path.name: len(record.boxes) for record in split.records} == {
        "left.png": 1,
        "right.png": 1,
        "none.png": 0,
    }


def test_low_scores_are_left_out(tiny_root: Path, folder: Path) -> None:
    content = label(tiny_root, folder, Finder(scores=(0.9, 0.4)), score=0.5)
    assert len(content["annotations"]) == 1
    assert label(tiny_root, folder, Finder(scores=(0.9, 0.4)), score=0.5, flip=True)["annotations"].__len__() == 2


def test_thresholds_are_chosen_on_training_images(tiny_root: Path, folder: Path) -> None:
    content = label(tiny_root, folder, Finder(), score="auto")
    thresholds = content["info"]["thresholds"]
    assert {name: one["score"] for name, one in thresholds.items()} == dict.fromkeys(thresholds, pytest.approx(0.9))
    assert all(0 < one["f1"] <= 1 for one in thresholds.values())
    assert content["annotations"]


def test_thresholds_are_chosen_on_images_that_are_held_out(
    tiny_root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def detect(detector: Finder, batch: Any) -> Any:
        seen.extend(batch.image_ids)
        return detector.detect(batch.images, batch.sizes)

    monkeypatch.setattr("dfmsd.evaluation.pseudolabels.detect", detect)
    config = DataConfig(str(tiny_root), image_size=64, unlabeled=str(folder), pseudo=PseudoConfig("auto"), holdout=0.4)
    data = CocoDataModule(config)
    pseudo_labels(Finder(), data)
    assert [number for number in seen if number > 0] == [record.id for record in data.val.coco.records]
    assert [number for number in seen if number < 0] == [-1, -2, -3]


def test_classes_that_the_detector_does_not_find_have_no_boxes(tiny_root: Path, folder: Path) -> None:
    content = label(tiny_root, folder, Finder("disc"), score="auto")
    assert list(content["info"]["thresholds"]) == ["disc"]
    assert content["annotations"] == []
    lines = describe_labels(content, ("square", "disc"))
    assert lines[0] == "pseudo-labels: 0 boxes in 0 of 3 images; 3 without a confident detection stay unlabeled"
    assert lines[1].startswith("lowest scores of pseudo-labels: disc 0.90 (F1 ")
    assert lines[2].startswith("no pseudo-labels of square: ")
