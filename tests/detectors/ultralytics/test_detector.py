"""Random YOLO detectors against the library's own passes, losses and detections."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from tests.helpers.tiny_ultralytics import CLASSES, FAMILIES, NEEDED, SIZES, TARGETS, build_theirs
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from dfmsd.detectors.ultralytics.detector import UltralyticsDetector, _suppress
from dfmsd.errors import DfmsdError

pytestmark = NEEDED


@pytest.fixture(scope="module", params=FAMILIES)
def theirs(request: pytest.FixtureRequest) -> Any:
    return build_theirs(str(request.param))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))


def test_the_pyramid_is_what_the_librarys_head_receives(theirs: Any, images: Tensor) -> None:
    detector = UltralyticsDetector(theirs, CLASSES)
    received: list[Tensor] = []
    handle = theirs.model[-1].register_forward_pre_hook(lambda _, inputs: received.extend(inputs[0]))
    with torch.no_grad():
        theirs(images)
        handle.remove()
        pyramid = detector.features(images)
    assert [(level.name, level.stride) for level in detector.levels] == [("p3", 8), ("p4", 16), ("p5", 32)]
    assert [level.channels for level in detector.levels] == [value.shape[1] for value in received]
    for mine, their in zip(pyramid.values(), received, strict=True):
        assert torch.equal(mine, their)


def test_the_backbone_ends_in_front_of_the_neck(theirs: Any) -> None:
    layers = UltralyticsDetector(theirs, CLASSES).backbone_layers()
    assert layers[0] is theirs.model[0]
    assert type(theirs.model[len(layers)]).__name__ == "Upsample"  # the first layer of the neck


@pytest.mark.parametrize("training", [True, False])
def test_losses_are_the_librarys_divided_by_its_batch_size(theirs: Any, images: Tensor, training: bool) -> None:
    theirs.train(training)
    frames = torch.tensor([128.0, 96, 128, 96])
    batch = {
        "img": images,
        "batch_idx": torch.zeros(2),
        "cls": torch.tensor([[1.0], [0.0]]),
        "bboxes": box_convert(TARGETS[0]["boxes"], "xyxy", "cxcywh") / frames,
    }
    expected, _ = theirs.loss(batch)
    pyramid, losses = UltralyticsDetector(theirs, CLASSES)(images, TARGETS)
    theirs.eval()
    assert list(losses) == ["box", "cls", "dfl"]
    assert torch.allclose(torch.stack(list(losses.values())), expected / 2, rtol=1e-4)
    assert list(pyramid) == ["p3", "p4", "p5"]


def test_detections_are_the_librarys(theirs: Any, images: Tensor) -> None:
    head = theirs.model[-1]
    for layer in [*head.cv3, *getattr(head, "one2one_cv3", ())]:  # scores of random weights hardly differ
        layer[-1].weight.data.mul_(30)
        layer[-1].bias.data.fill_(-2.0)
    detector = UltralyticsDetector(theirs, CLASSES).eval()
    suppress = import_module("ultralytics.utils.nms").non_max_suppression
    with torch.no_grad():
        raw = theirs(images)
        expected = suppress(
            raw, 0.001, 0.7, max_det=100, multi_label=True, max_nms=3000, max_time_img=60.0, end2end=head.end2end
        )
    found = detector.detect(images, [(96, 128), (96, 128)])
    for mine, their in zip(found, expected, strict=True):
        assert len(mine["scores"]) == len(their) > 50
        assert torch.allclose(mine["scores"], their[:, 4], atol=1e-5)
        assert torch.equal(mine["labels"], their[:, 5].long())
        overlaps = box_iou(mine["boxes"], their[:, :4].clamp(min=0).minimum(torch.tensor([128.0, 96, 128, 96])))
        assert (overlaps.diag() > 0.99).all()


def test_boxes_are_clipped_to_the_content_of_each_image(theirs: Any, images: Tensor) -> None:
    for layer in theirs.model[-1].cv3:
        layer[-1].bias.data.fill_(0.0)
    _, second = UltralyticsDetector(theirs, CLASSES).detect(images, SIZES)
    assert second["boxes"][:, 3].max() <= 64


def test_a_box_is_found_for_each_class_with_a_score_and_once_only() -> None:
    output = torch.zeros(4 + 2, 3)
    output[:4] = torch.tensor([[20.0, 20, 10, 10], [20.5, 20, 10, 10], [60, 60, 10, 20]]).T
    output[4:] = torch.tensor([[0.9, 0.3], [0.8, 0.0], [0.0, 0.0005]]).T
    found = _suppress(output)
    assert found["scores"].tolist() == pytest.approx([0.9, 0.3])
    assert found["labels"].tolist() == [0, 1]
    assert found["boxes"].tolist() == [[15, 15, 25, 25]] * 2


def test_images_that_do_not_fit_the_coarsest_level_are_refused(theirs: Any) -> None:
    with pytest.raises(DfmsdError, match="48 x 64 pixels: pad both sides to multiples of 32"):
        UltralyticsDetector(theirs, CLASSES).features(torch.rand(1, 3, 48, 64))
