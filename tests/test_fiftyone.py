"""FiftyOne reads predictions.json, by its importer of COCO detection data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dfmsd.detectors.base import Detector
from dfmsd.evaluation import predict as module
from dfmsd.evaluation.predict import predict
from dfmsd.exporting.verify import ExportedDetector

pytest.importorskip("supervision", reason="needs pip install 'dfmsd[predict]'")

FIELDS = {"id", "image_id", "category_id", "bbox", "segmentation", "keypoints", "score", "area", "iscrowd"}
"""Arguments of FiftyOne's `COCOObject`; other keys would become attributes of the label."""
RawDetections = dict[str, list[tuple[str, list[float], float]]]
WANTED: RawDetections = {
    # 64 pixels of the frame are 128 of the image, whose lower half is padding: y is relative to its 64 pixels
    "deep/wide.png": [("disc", [0.125, 0.125, 0.25, 0.5], 0.75)],
    "square.png": [("disc", [0.125, 0.0625, 0.25, 0.25], 0.75)],
}
"""File -> label, x, y, width and height relative to the image, and confidence: what FiftyOne is to see."""


@pytest.fixture
def predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Predict on two images, with a detector that sees one box in every frame of 64 x 64 pixels."""

    def run(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return torch.tensor([[[8.0, 4.0, 24.0, 20.0]]]), torch.tensor([[0.75]]), torch.tensor([[1]])

    def load(_: str) -> Detector:
        return ExportedDetector(run, ("square", "disc"))

    monkeypatch.setattr(module, "load_detector", load)
    (tmp_path / "images" / "deep").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "images" / "square.png")
    Image.new("RGB", (128, 64)).save(tmp_path / "images" / "deep" / "wide.png")
    predict("any", [tmp_path / "images"], tmp_path / "out", image_size=64)
    return tmp_path / "out" / "predictions.json"


def test_the_file_contains_what_the_reader_expects(predictions: Path) -> None:
    """The reader's rule, written out: file by name below the folder, label by id, box divided by the image's size."""
    content: dict[str, list[dict[str, Any]]] = json.loads(predictions.read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in content["categories"]}
    images = {image["id"]: image for image in content["images"]}
    seen: RawDetections = {}
    for one in content["annotations"]:
        assert one.keys() <= FIELDS
        image = images[one["image_id"]]
        x, y, w, h = one["bbox"]
        box = [x / image["width"], y / image["height"], w / image["width"], h / image["height"]]
        seen.setdefault(image["file_name"], []).append((names[one["category_id"]], box, one["score"]))
    assert seen == WANTED
    assert all((predictions.parents[1] / "images" / name).is_file() for name in seen)
    assert list(images) == [1, 2]  # places of the images, from 1, as `add_coco_labels` takes them for


def test_fiftyone_reads_it(predictions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own importer, which needs no database, unlike a data set of FiftyOne's."""
    monkeypatch.setenv("FIFTYONE_DO_NOT_TRACK", "true")
    coco = pytest.importorskip("fiftyone.utils.coco", reason="needs FiftyOne, which is no dependency")
    images = predictions.parents[1] / "images"
    seen: RawDetections = {}
    with coco.COCODetectionDatasetImporter(
        data_path=str(images), labels_path=str(predictions), label_types="detections"
    ) as importer:
        for path, _, label in importer:
            name = Path(path).relative_to(images).as_posix()
            seen[name] = [(one.label, one.bounding_box, one.confidence) for one in label.detections]
    assert seen == WANTED
