"""Cut heads against torchvision's whole heads."""

from __future__ import annotations

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tests.helpers.fixtures import TINY_BACKBONE
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead

from dfmsd.detectors import DetectorConfig, TorchvisionDetector, build_detector, wrap_torchvision
from dfmsd.detectors.base import Detector
from dfmsd.detectors.registry import build_model
from dfmsd.detectors.torchvision.heads import anchors_of, total_centerness
from dfmsd.errors import DfmsdError
from dfmsd.types import Target

NAMES = ("a", "b", "c")
SIDE = 64
IMAGES = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
TARGETS: list[Target] = [
    {"boxes": torch.tensor([[8.0, 8, 40, 44], [50, 30, 62, 40]]), "labels": torch.tensor([0, 2])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
]
EMPTY: list[Target] = [TARGETS[1], TARGETS[1]]
DENSE = ["fcos", "retinanet", "gfl"]


def detector(arch: str, head_convs: int = 2) -> TorchvisionDetector:
    built = build_detector(DetectorConfig(arch, TINY_BACKBONE, fpn_channels=16, head_convs=head_convs), NAMES)  # type: ignore[arg-type]
    for parameter in built.model.head.parameters():
        nn.init.normal_(parameter, std=0.1)
    return built.eval()


@pytest.mark.parametrize("arch", DENSE)
def test_the_spec_describes_the_head(arch: str) -> None:
    spec = detector(arch, 3).dense_head.spec
    assert (spec.arch, spec.classes, spec.channels, spec.convs) == (arch, NAMES, 16, 3)
    assert spec.strides == (8, 16, 32, 64, 128)
    assert [len(sizes) * len(ratios) for sizes, ratios in spec.anchors] == [9 if arch == "retinanet" else 1] * 5
    assert spec.bins == (17 if arch == "gfl" else 0)


@pytest.mark.parametrize("reused", [0, 1, 2])
@pytest.mark.parametrize("arch", DENSE)
def test_a_cut_head_predicts_the_same_as_the_whole_one(arch: str, reused: int) -> None:
    found = detector(arch, 3)
    head = found.dense_head
    for level in found.features(IMAGES).values():
        with torch.no_grad():
            whole = found.model.head([level])
            towers = head.towers(level, reused)
            kept = copy.deepcopy(towers)
            parts = head.outputs(towers, reused)
        assert_close(parts, whole)
        assert_close(head.predict(towers, reused), (whole["cls_logits"], whole["bbox_regression"]))
        assert_close(towers, kept, rtol=0, atol=0)  # no activation works in place on what will be compared
        assert (towers.classification < 0).any()


@pytest.mark.parametrize("reused", [0, 1])
@pytest.mark.parametrize("targets", [TARGETS, EMPTY], ids=["boxes", "empty"])
@pytest.mark.parametrize("arch", DENSE)
def test_the_pass_with_the_head_equals_the_plain_one(arch: str, targets: list[Target], reused: int) -> None:
    found = detector(arch)
    pyramid, own, _ = found.forward_with_head(IMAGES, targets, reused)
    plain_pyramid, plain = found(IMAGES, targets)
    assert_close(pyramid, plain_pyramid)
    assert_close(own, plain)
    gradients = []
    for losses in (own, plain):
        found.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        gradients.append([value.grad.clone() for value in found.parameters()])
    for got, want in zip(*gradients, strict=True):
        assert (got - want).norm() <= 1e-4 * want.norm() + 1e-6


@pytest.mark.parametrize("arch", DENSE)
def test_decoded_boxes_equal_those_of_the_detections(arch: str) -> None:
    found = detector(arch)
    found.model.score_thresh, found.model.nms_thresh, found.model.detections_per_img = 0.0, 1.0, 10**6
    found.model.topk_candidates = 10**6
    pyramid, _, seen = found.forward_with_head(IMAGES, TARGETS, 1)
    head = found.dense_head
    boxes = torch.cat(
        [head.decode(head.at(i).predict(seen.towers[n], 1)[1], seen.anchors[n]) for i, n in enumerate(pyramid)], dim=1
    )
    detected = found.detect(IMAGES, [(10**6, 10**6)] * 2)  # so large that only the left and upper side clip
    for own, want in zip(boxes, detected, strict=True):
        clipped = own.detach().clamp(min=0)
        distance = torch.cdist(want["boxes"], clipped, p=1).amin(dim=1)
        assert len(distance) == len(NAMES) * len(clipped)
        assert distance.max() < 1e-2


def test_the_pass_records_anchors_and_their_objects() -> None:
    found = detector("retinanet")
    pyramid, _, seen = found.forward_with_head(IMAGES, TARGETS, 1)
    anchors = torch.cat(list(seen.anchors.values()))
    assert [len(level) for level in seen.anchors.values()] == [9 * p.shape[2] * p.shape[3] for p in pyramid.values()]
    matched = found.model.proposal_matcher(_overlaps(TARGETS[0]["boxes"], anchors))
    valid = torch.cat(list(seen.valid.values()), dim=1)
    assert torch.equal(valid[0], matched != -2)
    assert not valid[0].all()
    assert valid[1].all()  # all background
    assert int(seen.positives) == int((matched >= 0).sum()) > 0
    assert float(found.forward_with_head(IMAGES, EMPTY, 1)[2].positives) == 0


def test_fcos_counts_its_points_by_centerness() -> None:
    found = detector("fcos")
    _, _, seen = found.forward_with_head(IMAGES, TARGETS, 1)
    total = 0.0
    sizes = torch.cat([torch.full((len(a),), float(a[0, 2] - a[0, 0])) for a in seen.anchors.values()])
    for anchor, size in zip(torch.cat(list(seen.anchors.values())), sizes, strict=True):
        x, y = ((anchor[:2] + anchor[2:]) / 2).tolist()
        best: tuple[float, float] | None = None  # area and centerness of the smallest object of this point
        for x1, y1, x2, y2 in TARGETS[0]["boxes"].tolist():
            sides = (x - x1, x2 - x), (y - y1, y2 - y)
            reach = max(max(pair) for pair in sides)
            near = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) < 1.5 * size
            low, high = (0 if size == 8 else 4 * size), (float("inf") if size == 128 else 8 * size)
            if min(min(pair) for pair in sides) > 0 and near and low < reach < high:
                ratios = [min(pair) / max(pair) for pair in sides]
                best = min(best or (float("inf"), 0), ((x2 - x1) * (y2 - y1), (ratios[0] * ratios[1]) ** 0.5))
        total += 0 if best is None else best[1]
    assert total > 1
    assert_close(float(seen.positives), total, rtol=1e-5, atol=0)
    assert all(bool(valid.all()) for valid in seen.valid.values())
    assert float(found.forward_with_head(IMAGES, EMPTY, 1)[2].positives) == 0


def test_centerness_by_hand() -> None:
    anchors = torch.tensor([[0.0, 0.0, 8.0, 8.0], [8.0, 0.0, 16.0, 8.0]])  # points (4, 4) and (12, 4)
    boxes = torch.tensor([[[2.0, 0.0, 12.0, 8.0]] * 2])  # sides 2, 8, 4, 4 of the first; the second is on the edge
    coder = BoxLinearCoder(normalize_by_size=True)
    weigh = partial(total_centerness, coder, anchors, boxes)
    assert_close(weigh(torch.tensor([[True, False]])), torch.tensor(0.5))
    assert_close(weigh(torch.tensor([[False, False]])), torch.tensor(0.0))


def test_other_detectors_have_no_dense_head() -> None:
    two_stage = build_detector(DetectorConfig("faster_rcnn", TINY_BACKBONE, fpn_channels=16), NAMES)
    assert two_stage.dense_head is None
    with pytest.raises(DfmsdError, match="has no dense head that can be cut"):
        two_stage.forward_with_head(IMAGES, TARGETS, 1)
    assert Detector.dense_head.fget(SimpleNamespace()) is None  # type: ignore[attr-defined]
    assert len(anchors_of(two_stage.model)) == 5


def test_custom_heads_cannot_be_cut() -> None:
    model = build_model(DetectorConfig("fcos", TINY_BACKBONE, fpn_channels=16, head_convs=1), len(NAMES))

    class Other(nn.Module):
        num_classes = len(NAMES)

        def forward(self, x: list[Tensor]) -> Tensor:
            raise NotImplementedError("only its class is looked at")

    model.head.classification_head = Other()
    assert isinstance(model, FCOS)
    assert wrap_torchvision(model, NAMES).dense_head is None


def test_towers_without_normalization_are_cut_after_the_convolution() -> None:
    built = build_model(DetectorConfig("retinanet", TINY_BACKBONE, fpn_channels=16), len(NAMES))
    head = RetinaNetHead(16, 9, len(NAMES))  # as in torchvision's first RetinaNet: conv, ReLU in place
    plain = RetinaNet(built.backbone, len(NAMES), anchor_generator=AnchorGenerator(*_grid(built)), head=head)
    found = wrap_torchvision(plain, NAMES).eval()
    assert found.dense_head.spec.convs == 4
    level = torch.randn(1, 16, 8, 8)
    with torch.no_grad():
        towers = found.dense_head.towers(level, 3)
        assert_close(towers.classification, head.classification_head.conv[0][0](level))
        assert_close(found.dense_head.outputs(towers, 3), head([level]))


def _grid(model: RetinaNet) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...]]:
    return model.anchor_generator.sizes, model.anchor_generator.aspect_ratios


def _overlaps(boxes: Tensor, anchors: Tensor) -> Tensor:
    common = torch.minimum(boxes[:, None, 2:], anchors[None, :, 2:]) - torch.maximum(
        boxes[:, None, :2], anchors[None, :, :2]
    )
    inside = common.clamp(min=0).prod(dim=2)
    areas = [(each[:, 2:] - each[:, :2]).prod(dim=1) for each in (boxes, anchors)]
    return inside / (areas[0][:, None] + areas[1][None] - inside)


@pytest.mark.parametrize("arch", DENSE)
def test_the_pass_records_the_heads_predictions(arch: str) -> None:
    found = detector(arch)
    pyramid, _, seen = found.forward_with_head(IMAGES, TARGETS, 1)
    for index, name in enumerate(pyramid):
        logits, box_deltas = found.dense_head.at(index).predict(seen.towers[name], 1)
        assert_close(seen.logits[name], logits)
        assert_close(seen.box_deltas[name], box_deltas)
        assert seen.objects[name].shape == seen.near[name].shape == logits.shape[:2]
    objects, near = (torch.cat(list(part.values()), dim=1) for part in (seen.objects, seen.near))
    assert objects[0].any()
    assert not objects[1].any()  # no boxes in that image
    assert bool(near[0].any()) == (arch == "gfl")
    assert not near[1].any()


def test_each_level_of_gfl_has_a_scale() -> None:
    found = detector("gfl", 1)
    with torch.no_grad():
        found.model.head.regression_head.scales.copy_(torch.arange(1.0, 6.0))
    level, head = torch.randn(1, 16, 4, 4), found.dense_head
    towers = head.towers(level, 0)
    one, three = (head.at(index).predict(towers, 0) for index in (0, 2))
    assert_close(three[1], 3 * one[1])
    assert_close(three[0], one[0])
    whole = found.model.head([level] * 5)["bbox_regression"]
    assert_close(whole, torch.cat([factor * one[1] for factor in range(1, 6)], dim=1))
