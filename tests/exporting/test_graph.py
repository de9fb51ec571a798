"""The graph detects the same objects as the detector."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.helpers.exports import OWN, randomize, tiny
from tests.helpers.fixtures import TINY_BACKBONE
from tests.helpers.tiny_transformers import needs_transformers, save_model, student
from torch import nn

from dfmsd.detectors import Detector, DetectorConfig, load_detector
from dfmsd.detectors.registry import build_model
from dfmsd.detectors.torchvision.wrap import wrap_torchvision
from dfmsd.errors import DfmsdError
from dfmsd.exporting import to_onnx
from dfmsd.exporting.graph import DetectionGraph, trace
from dfmsd.exporting.verify import ExportedDetector, compare_detectors


def assert_same(detector: Detector, graph: DetectionGraph, least: int = 10) -> None:
    def run(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = graph(images)
        return found

    batches = [torch.rand(count, 3, graph.side, graph.side) for count in (3, 1)]
    found = compare_detectors(detector, ExportedDetector(run, detector.class_names), batches, 0.05, 100, 0.001)
    assert found.detections >= least
    assert found.boxes < 1e-6
    assert found.scores < 1e-6


@pytest.mark.parametrize("arch", OWN)
def test_graph_detects_the_same_objects(arch: str) -> None:
    detector = tiny(arch)
    assert_same(detector, DetectionGraph(detector, 96), least=2)


@pytest.mark.parametrize("side", [96, 320])
def test_ssdlite_at_different_sizes(side: int) -> None:
    detector = tiny("ssdlite")
    assert_same(detector, DetectionGraph(detector, side))


def test_proposals_of_equal_scores_are_suppressed_in_the_order_of_their_logits(tmp_path: Path) -> None:
    detector = tiny("faster_rcnn")
    head = detector.model.rpn.head.cls_logits
    with torch.no_grad():
        head.weight *= 30 / head(torch.rand(1, head.in_channels, 8, 8)).std()
        head.bias.fill_(60.0)
        head.bias[1] = -200.0  # one anchor of each place; one model for both, as its export takes most of the time
    graph = DetectionGraph(detector, 64)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        logits, _ = detector.model.rpn.head(list(graph.decoder.maps(images).values()))
    probabilities = torch.cat([level.flatten() for level in logits]).sigmoid()
    assert (probabilities == 1).float().mean() > 0.5
    assert (probabilities == 0).float().mean() > 0.25
    to_onnx.write(graph, tmp_path / "model.onnx")
    assert_same(detector, graph)
    exported = ExportedDetector(to_onnx.read(tmp_path / "model.onnx"), detector.class_names)
    found = compare_detectors(detector, exported, [images], 0.05, 100, 0.001)
    assert found.detections >= 10
    assert found.boxes < 1e-3
    assert found.scores < 1e-5


def test_thresholds_come_from_the_model() -> None:
    detector = tiny("retinanet")
    detector.model.score_thresh, detector.model.nms_thresh, detector.model.detections_per_img = 0.1, 0.2, 7
    graph = DetectionGraph(detector, 96)
    assert_same(detector, graph, least=4)
    with torch.no_grad():
        _, scores, _ = graph(torch.rand(2, 3, 96, 96))
    assert scores.shape == (2, 7)
    assert scores[scores > 0].min() > 0.1


def test_labels_without_a_class_are_removed() -> None:
    config = DetectorConfig("retinanet", TINY_BACKBONE, fpn_channels=16, head_convs=1)
    detector = randomize(wrap_torchvision(build_model(config, 3), ["a", "c"], [0, 2]))
    graph = DetectionGraph(detector, 96)
    assert_same(detector, graph)
    with torch.no_grad():
        _, scores, labels = graph(torch.rand(1, 3, 96, 96))
    assert set(labels[scores > 0].tolist()) == {0, 1}
    assert set(labels[scores == 0].tolist()) == {-1}


@pytest.mark.parametrize("model_type", ["rt_detr", "rt_detr_v2", "d_fine", "lw_detr", "deformable_detr"])
@needs_transformers
@pytest.mark.transformers
def test_queries_are_not_suppressed(model_type: str, tmp_path: Path) -> None:
    save_model(model_type, tmp_path)
    detector = student(tmp_path).eval()
    assert_same(detector, DetectionGraph(detector, 96))


def test_missing_detections_are_padded() -> None:
    detector = tiny("gfl")
    nn.init.constant_(detector.model.head.classification_head.cls_logits.bias, -20.0)
    with torch.no_grad():
        boxes, scores, labels = DetectionGraph(detector, 64)(torch.rand(2, 3, 64, 64))
    assert boxes.shape == (2, 100, 4)
    assert not boxes.any()
    assert not scores.any()
    assert (labels == -1).all()


def test_unsupported_detectors_and_sizes_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(DfmsdError, match=r"`image_size` must be a multiple of 32, .* got 50"):
        DetectionGraph(tiny("gfl"), 50)
    with pytest.raises(DfmsdError, match="this ExportedDetector cannot be exported; supported are FCOS"):
        DetectionGraph(ExportedDetector(lambda images: (images, images, images), ("a",)), 64)


@needs_transformers
@pytest.mark.transformers
def test_teacher_only_models_are_rejected(tmp_path: Path) -> None:
    save_model("detr", tmp_path)
    with pytest.raises(DfmsdError, match="cannot be exported"):
        DetectionGraph(load_detector(f"hf:{tmp_path}"), 64)


def test_data_dependent_model_cannot_be_traced() -> None:
    class DataDependent(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images if bool(images.sum() > 0) else -images

    with pytest.raises(DfmsdError, match=r"cannot trace this model \(.+\); choose another model") as caught:
        trace(DataDependent(), 32, dynamic=True)
    assert "\n" not in str(caught.value)
