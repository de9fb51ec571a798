from __future__ import annotations

import copy

import pytest
import torch
from tests.helpers.fixtures import TINY_BACKBONE
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from dfmsd.detectors import Detector, DetectorConfig, build_detector
from dfmsd.detectors.torchvision.soft import soft_focal_loss
from dfmsd.types import Target

IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
TARGETS: list[Target] = [
    {"boxes": torch.tensor([[4.0, 8, 40, 44], [20, 20, 60, 50]]), "labels": torch.tensor([0, 1])},
    {"boxes": torch.tensor([[30.0, 2, 62, 30]]), "labels": torch.tensor([1])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
]
TAKING = ("fcos", "retinanet", "gfl")


@pytest.fixture(scope="module", params=TAKING)
def detector(request: pytest.FixtureRequest) -> Detector:
    torch.manual_seed(0)
    config = DetectorConfig(request.param, TINY_BACKBONE, fpn_channels=16, head_convs=1)
    return build_detector(config, ("a", "b")).eval()


def losses(detector: Detector, *scores: list[float]) -> dict[str, Tensor]:
    targets = copy.deepcopy(TARGETS)
    for target, of_image in zip(targets, scores, strict=False):
        target["scores"] = torch.tensor(of_image)
    with torch.no_grad():
        return detector(IMAGES, targets)[1]


def test_for_targets_of_0_and_1_the_loss_is_torchvisions() -> None:
    logits, target = torch.randn(50, dtype=torch.float64), (torch.rand(50) > 0.5).double()
    torch.testing.assert_close(soft_focal_loss(logits, target), sigmoid_focal_loss(logits, target))


@pytest.mark.parametrize("goal", [0.1, 0.5, 0.8])
def test_the_minimum_is_at_the_target(goal: float) -> None:
    shares = torch.linspace(0.01, 0.99, 99)
    found = soft_focal_loss(shares.logit(), torch.full_like(shares, goal))
    assert float(shares[found.argmin()]) == pytest.approx(goal)
    assert float(found.min()) == pytest.approx(0, abs=1e-6)


def test_scores_of_1_change_nothing(detector: Detector) -> None:
    plain = losses(detector)
    for scores in ([[1.0, 1.0], [1.0], []], [[1.0, 1.0]], [[1.0, 1.0], [1.0]]):  # images without scores count as 1
        for name, value in losses(detector, *scores).items():
            torch.testing.assert_close(value, plain[name])


def test_scores_change_the_classification_alone(detector: Detector) -> None:
    plain, soft = losses(detector), losses(detector, [0.6, 0.9], [0.3], [])
    assert not torch.isclose(soft["classification"], plain["classification"])
    for name in plain.keys() - {"classification"}:
        torch.testing.assert_close(soft[name], plain[name])


@pytest.mark.parametrize("arch", ["fcos", "retinanet"])
def test_the_loss_is_that_of_a_literal_loop(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    detector = build_detector(DetectorConfig(arch, TINY_BACKBONE, fpn_channels=16, head_convs=1), ("a", "b")).eval()
    seen = {}

    def noting(model: object, targets: object, logits: Tensor, matched: list[Tensor]) -> Tensor:
        seen.update(logits=logits, matched=matched)
        return logits.sum()

    with monkeypatch.context() as patch:
        patch.setattr("dfmsd.detectors.torchvision.one_stage.soft_classification", noting)
        losses(detector, [0.6, 0.9], [0.3], [])
    scores, images, positives = [[0.6, 0.9], [0.3], []], [], []
    labels = detector.label_ids
    for image, index in enumerate(seen["matched"]):
        total, count = torch.zeros(()), 0
        for anchor, place in enumerate(index.tolist()):
            goal = torch.zeros(seen["logits"].shape[2])
            if place >= 0:
                goal[labels[TARGETS[image]["labels"][place]]] = scores[image][place]
                count += 1
            if place != -2:
                total += soft_focal_loss(seen["logits"][image, anchor], goal).sum()
        images.append(total)
        positives.append(count)
    assert sum(positives) > 0
    if arch == "fcos":
        expected = sum(images) / sum(positives)
    else:
        expected = sum(total / max(1, count) for total, count in zip(images, positives, strict=True)) / 3
    torch.testing.assert_close(losses(detector, *scores)["classification"], expected)


def test_gfl_multiplies_overlaps_by_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    detector = build_detector(DetectorConfig("gfl", TINY_BACKBONE, fpn_channels=16, head_convs=1), ("a", "b")).eval()
    seen: list[Tensor] = []

    def noting(logits: Tensor, quality: Tensor) -> Tensor:
        seen.append(quality)
        return logits.sum()

    monkeypatch.setattr("dfmsd.detectors.torchvision.gfl.quality_focal_loss", noting)
    losses(detector)
    losses(detector, [0.5, 0.5], [0.25], [])
    plain, soft = seen
    assert plain.sum() > 0
    for image, factor in enumerate((0.5, 0.25, 1.0)):
        torch.testing.assert_close(soft[image], plain[image] * factor)


def test_who_takes_scores(detector: Detector) -> None:
    assert detector.soft_targets
    for arch in ("ssdlite", "faster_rcnn"):
        assert not build_detector(DetectorConfig(arch, TINY_BACKBONE, fpn_channels=16), ("a", "b")).soft_targets
