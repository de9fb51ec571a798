from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.annotations import edit

import dfmsd
from dfmsd.data import CocoDataModule, DataConfig
from dfmsd.data.splitcheck import open_test_split
from dfmsd.detectors import DetectorConfig, load_detector
from dfmsd.engine.build import check_contents
from dfmsd.engine.config import TrainConfig
from dfmsd.engine.run import Result, train
from dfmsd.errors import DfmsdError
from dfmsd.runfolder import RunFolder


def add_test_split(root: Path) -> None:
    """Copy the val split, without its first image's boxes."""
    shutil.copytree(root / "val", root / "test")
    file = root / "annotations" / "instances_val.json"
    raw: dict[str, Any] = json.loads(file.read_text())
    first = raw["images"][0]["id"]
    raw["annotations"] = [entry for entry in raw["annotations"] if entry["image_id"] != first]
    (file.parent / "instances_test.json").write_text(json.dumps(raw))


def run_config(root: Path, out: Path) -> TrainConfig:
    data = DataConfig(str(root), image_size=64, batch_size=2)
    model = DetectorConfig("fcos", "test_efficientnet", fpn_channels=16, head_convs=1)
    return TrainConfig(out=str(out), data=data, model=model, epochs=1)


@pytest.fixture
def result(tiny_coco: Path, tmp_path: Path) -> Result:
    add_test_split(tiny_coco)
    return train(run_config(tiny_coco, tmp_path / "run"))


def test_the_delivered_student_is_measured_on_the_test_split(
    result: Result, tiny_coco: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert result.test_metrics == dfmsd.evaluate(result.run, tiny_coco, split="test")
    assert result.test_metrics != result.metrics
    assert RunFolder(result.run).read_test_metrics() == result.test_metrics
    assert RunFolder(result.run).read_metrics() == result.metrics


def test_reports_and_model_cards_show_it(result: Result, tmp_path: Path) -> None:
    assert "test AP" in dfmsd.report(result.run, images=2)[0].read_text()
    pytest.importorskip("huggingface_hub")
    card = dfmsd.share(result.run, tmp_path / "shared").read_text()
    assert "on the test split" in card


def test_a_test_image_that_cannot_be_decoded_costs_no_student(tiny_coco: Path, tmp_path: Path) -> None:
    add_test_split(tiny_coco)
    image = tiny_coco / "test" / "val_0.jpg"
    image.write_bytes(image.read_bytes()[:-200])  # the header is sound
    with pytest.raises(DfmsdError, match=r"val_0\.jpg: cannot be decoded"):
        train(run_config(tiny_coco, tmp_path / "run"))
    assert RunFolder(tmp_path / "run").finished
    assert load_detector(tmp_path / "run").class_names == ("square", "disc")


def contents(root: Path, test: str | None = None) -> CocoDataModule:
    data = CocoDataModule(DataConfig(str(root), image_size=64, batch_size=2, test=test))
    check_contents(data)
    return data


def test_a_test_split_that_is_named_but_missing_is_refused_before_training(tiny_coco: Path) -> None:
    with pytest.raises(DfmsdError, match=r"data\.test: .* has no split exam, only train, val"):
        contents(tiny_coco, "exam")


def test_a_damaged_test_split_is_refused_before_training(tiny_coco: Path) -> None:
    add_test_split(tiny_coco)
    next((tiny_coco / "test").iterdir()).unlink()
    with pytest.raises(DfmsdError, match=r"test: 1 of the \d images in .*instances_test\.json are missing"):
        contents(tiny_coco)


def test_a_test_split_without_objects_is_passed_over_unless_it_is_named(tiny_coco: Path) -> None:
    add_test_split(tiny_coco)
    edit(tiny_coco, lambda raw: raw.update(annotations=[]), "test")
    assert open_test_split(contents(tiny_coco).config) is None
    with pytest.raises(DfmsdError, match=r"instances_test\.json: no annotated object, so no AP can be measured"):
        contents(tiny_coco, "test")
