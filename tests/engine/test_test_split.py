from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import dfmsd
from dfmsd.data import DataConfig
from dfmsd.detectors import DetectorConfig
from dfmsd.engine.config import TrainConfig
from dfmsd.engine.run import Result, train
from dfmsd.runfolder import RunFolder


def add_test_split(root: Path) -> None:
    """Copy the val split, without its first image's boxes."""
    shutil.copytree(root / "val", root / "test")
    file = root / "annotations" / "instances_val.json"
    raw: dict[str, Any] = json.loads(file.read_text())
    first = raw["images"][0]["id"]
    raw["annotations"] = [entry for entry in raw["annotations"] if entry["image_id"] != first]
    (file.parent / "instances_test.json").write_text(json.dumps(raw))


@pytest.fixture
def result(tiny_coco: Path, tmp_path: Path) -> Result:
    add_test_split(tiny_coco)
    data = DataConfig(str(tiny_coco), image_size=64, batch_size=2)
    model = DetectorConfig("fcos", "test_efficientnet", fpn_channels=16, head_convs=1)
    return train(TrainConfig(out=str(tmp_path / "run"), data=data, model=model, epochs=1))


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
