"""SSD: levels, default boxes where they differ from torchvision's, and errors."""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD

from dfmsd.detectors import DetectorConfig, TorchvisionDetector, build_detector, wrap_torchvision
from dfmsd.detectors.torchvision.base import whole
from dfmsd.detectors.torchvision.heads import anchors_of, arch_of
from dfmsd.errors import DfmsdError
from dfmsd.types import LevelSpec, Target

SMALL = DetectorConfig("ssdlite", fpn_channels=8)
SIDE = 96
STEPS = [16, 40]
TARGET: Target = {"boxes": torch.tensor([[8.0, 8, 40, 44]]), "labels": torch.tensor([0])}


class TwoMaps(nn.Module):
    """Maps of stride 16, and of two cells less: the last convolution is not padded, as SSD300's are not."""

    out_channels = (4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 16, 16), nn.Conv2d(4, 4, 3)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        first = self.first(images)
        return OrderedDict([("0", first), ("1", self.second(first))])


def with_steps() -> TorchvisionDetector:
    boxes = DefaultBoxGenerator([[2], [2, 3]], scales=[0.2, 0.4, 0.6], steps=STEPS)
    return wrap_torchvision(SSD(TwoMaps(), boxes, (SIDE, SIDE), 2, score_thresh=0.0), ["a"]).eval()


def default_boxes(detector: TorchvisionDetector, images: Tensor) -> Tensor:
    maps = detector.model.backbone(images)
    return detector._heads(whole(images), maps)[1][0]  # type: ignore[attr-defined]


def by_hand(size: tuple[int, int], cells: list[tuple[int, int]], steps: list[int] | None) -> Tensor:
    """The boxes of `with_steps`, from the paper: center (i + 1/2) / (size / step), scales s and sqrt(s s')."""
    scales, ratios = [0.2, 0.4, 0.6], [[2], [2, 3]]
    boxes = []
    for level, (rows, columns) in enumerate(cells):
        s, between = scales[level], math.sqrt(scales[level] * scales[level + 1])
        sides = [(s, s), (between, between)]
        for ratio in ratios[level]:
            sides += [(s * math.sqrt(ratio), s / math.sqrt(ratio)), (s / math.sqrt(ratio), s * math.sqrt(ratio))]
        for i, j in product(range(rows), range(columns)):
            y = (i + 0.5) * (steps[level] if steps else size[0] / rows)
            x = (j + 0.5) * (steps[level] if steps else size[1] / columns)
            for width, height in sides:
                w, h = min(width, 1) * size[1] / 2, min(height, 1) * size[0] / 2
                boxes.append([x - w, y - h, x + w, y + h])
    return torch.tensor(boxes)


def test_levels_of_ssdlite_double_their_stride() -> None:
    detector = build_detector(SMALL, ["a"])
    widths = [24, 288, 32, 16, 16, 8]
    assert tuple(level._replace(sizes=None) for level in detector.levels) == tuple(
        LevelSpec(f"p{n}", width, 2**n) for n, width in zip(range(4, 10), widths, strict=True)
    )
    assert detector.training


def test_steps_of_default_boxes_are_the_strides() -> None:
    bound = pytest.approx(SIDE * math.sqrt(math.sqrt(0.2 * 0.4) * 0.4))  # between the boxes 0.2, sqrt(0.08) and 0.4
    levels = (LevelSpec("p4", 4, 16, (0, bound)), LevelSpec("p5", 4, 40, (bound, math.inf)))
    assert with_steps().levels == levels


def test_at_the_original_size_default_boxes_keep_their_steps() -> None:
    got = default_boxes(with_steps(), torch.rand(1, 3, SIDE, SIDE))
    assert_close(got, by_hand((SIDE, SIDE), [(6, 6), (4, 4)], STEPS))
    assert got.max() > 1.2 * SIDE  # four steps of 40


def test_at_another_size_default_boxes_are_spread_over_the_image() -> None:
    size = (64, 160)
    got = default_boxes(with_steps(), torch.rand(1, 3, *size))
    assert_close(got, by_hand(size, [(4, 10), (2, 8)], None))
    centers = (got[:, :2] + got[:, 2:]) / 2
    assert centers.min() > 0
    assert (centers < torch.tensor([160, 64])).all()


def test_default_boxes_grow_with_the_image() -> None:
    detector = build_detector(SMALL, ["a"]).eval()
    small, large = (default_boxes(detector, torch.rand(1, 3, side, side)) for side in (64, 128))
    for boxes, side in ((small, 64), (large, 128)):
        assert_close(boxes[0, 2:] - boxes[0, :2], torch.full((2,), 0.2 * side))


def test_default_boxes_stay_exact_on_bfloat16_maps() -> None:
    detector = build_detector(SMALL, ["a"]).eval()
    images = torch.rand(1, 3, SIDE, SIDE)
    maps = detector.model.backbone(images)
    detector.model.head.bfloat16()
    half = {name: value.bfloat16() for name, value in maps.items()}
    outputs, (boxes,) = detector._heads(whole(images), half)  # type: ignore[attr-defined]
    assert torch.equal(boxes, detector.model.anchor_generator(whole(images), list(maps.values()))[0])
    assert {value.dtype for value in outputs.values()} == {torch.float32}


def test_ssdlite_equals_torchvisions_at_its_width() -> None:
    """Default boxes, widths of the extra levels and layers of the head, for 90 classes."""
    theirs = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    config = DetectorConfig("ssdlite", "torchvision/mobilenet_v3_large", fpn_channels=128)
    own = build_detector(config, [str(label) for label in range(90)]).model
    assert own.anchor_generator.scales == theirs.anchor_generator.scales
    assert own.anchor_generator.aspect_ratios == theirs.anchor_generator.aspect_ratios
    extras = [
        [tuple(value.shape) for value in model.backbone.extra[1:].state_dict().values()] for model in (own, theirs)
    ]
    assert extras[0] == extras[1]
    heads = [
        [tuple(value.shape) for name, value in model.head.state_dict().items() if ".module_list.0" not in name]
        for model in (own, theirs)
    ]
    last = [shapes[-len(heads[1]) // 3 :] for shapes in heads]  # of the levels after the backbone's own two
    assert last[0] == last[1]


def test_anchor_scale_is_the_smallest_box() -> None:
    found = build_detector(DetectorConfig("ssdlite", fpn_channels=8, anchor_scale=2.0), ["a"])
    assert found.model.anchor_generator.scales[0] == pytest.approx(0.1)
    assert found.model.anchor_generator.scales[5:] == pytest.approx([0.95, 1.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anchor_scale": 19.0}, r"anchor_scale must be a number above 0 and below 19 for ssdlite, got 19\.0"),
        ({"fpn_channels": 1}, "fpn_channels must be an integer of at least 2 for ssdlite, got 1"),
        ({"backbone": "vit_tiny_patch16_224"}, "has no feature maps at strides 16, 32"),
    ],
)
def test_impossible_configurations_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        build_detector(DetectorConfig("ssdlite", **change), ["a"])  # type: ignore[arg-type]


def test_frozen_layers_do_not_change() -> None:
    detector = build_detector(DetectorConfig("ssdlite", fpn_channels=8, frozen_stride=4), ["a"]).eval().train()
    body = detector.model.backbone.body
    assert not body.bn1.training
    assert not next(body.parameters()).requires_grad
    assert detector.model.backbone.extra.training


def test_one_image_is_too_few_for_the_coarsest_level() -> None:
    detector = build_detector(SMALL, ["a"])
    with pytest.raises(DfmsdError, match=r"SSD got images of 1x3x64x64; one image is too few .* data\.batch_size to 2"):
        detector(torch.rand(1, 3, 64, 64), [TARGET])
    assert detector.eval().detect(torch.rand(1, 3, 64, 64), [(64, 64)])


def test_images_below_the_kernel_are_refused() -> None:
    with pytest.raises(DfmsdError, match=r"SSD got images of 1x3x32x32; they are too small .* raise data\.image_size"):
        with_steps().features(torch.rand(1, 3, 32, 32))


def test_other_errors_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_images: Tensor) -> dict[str, Tensor]:
        raise RuntimeError("out of memory")

    detector = with_steps()
    monkeypatch.setattr(detector.model.backbone, "forward", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        detector.features(torch.rand(1, 3, SIDE, SIDE))


def test_it_has_no_dense_head_and_exact_anchors() -> None:
    detector = with_steps()
    assert detector.dense_head is None
    assert arch_of(detector.model) == "ssd"
    assert anchors_of(detector.model) == ((0.2, (2,)), (0.4, (2, 3)))
