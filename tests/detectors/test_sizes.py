"""Object sizes of pyramid levels, from anchors, from torchvision's models and as stated by a caller."""

from __future__ import annotations

import json
import math
from functools import cache
from itertools import pairwise

import pytest
import torch
import torchvision
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator

from dfmsd.detectors import DetectorConfig, build_detector, wrap_torchvision
from dfmsd.detectors.sizes import SizeRange, anchor_ranges, stated_sizes, two_stage_ranges, with_sizes
from dfmsd.errors import DfmsdError
from dfmsd.losses.align import pair_levels
from dfmsd.types import LevelSpec

LEVELS = (LevelSpec("p3", 8, 8), LevelSpec("p4", 8, 16), LevelSpec("p5", 8, 32))
SIZES = [(0.0, 40.0), (40.0, 90.0), (90.0, math.inf)]


def bounds_of(levels: tuple[LevelSpec, ...]) -> list[float]:
    """The bounds between levels, whose ranges must meet and cover all sizes."""
    sizes = [level.sizes for level in levels if level.sizes is not None]
    assert len(sizes) == len(levels)
    assert (sizes[0][0], sizes[-1][1]) == (0, math.inf)
    assert all(fine[1] == coarse[0] for fine, coarse in pairwise(sizes))
    return [upper for _, upper in sizes[:-1]]


def torchvision_bounds(name: str) -> list[float]:
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=3)
    no_background = name.startswith(("fcos", "retinanet"))
    return bounds_of(wrap_torchvision(model, ["a", "b", "c"] if no_background else ["a", "b"]).levels)


@cache
def built(arch: str, anchor_scale: float = 4.0) -> tuple[LevelSpec, ...]:
    config = DetectorConfig(arch, "resnet10t", fpn_channels=16, pretrained=False, anchor_scale=anchor_scale)
    return build_detector(config, ["a"]).levels


def built_bounds(arch: str, anchor_scale: float = 4.0) -> list[float]:
    return bounds_of(built(arch, anchor_scale))


def test_a_bound_between_levels_lies_between_their_nearest_anchors() -> None:
    assert anchor_ranges([[8], [16, 18], [32]]) == [
        (0, math.sqrt(8 * 16)),
        (math.sqrt(8 * 16), 24),
        (24, math.inf),
    ]


def test_bounds_of_two_stages_lie_between_those_of_proposals_and_pooling() -> None:
    # proposals change level at 4 and 16, pooling at 64 and 128
    assert two_stage_ranges([[2], [8], [32]], 64) == [
        (0, 16),
        (16, math.sqrt(16 * 128)),
        (math.sqrt(16 * 128), math.inf),
    ]
    assert two_stage_ranges([[2], [8], [32]], None) == anchor_ranges([[2], [8], [32]])


def test_levels_with_the_same_anchors_have_no_sizes() -> None:
    anchors = [[32, 64, 128]] * 3
    assert two_stage_ranges(anchors, 112) is None
    assert with_sizes(LEVELS, anchor_ranges(anchors)) == LEVELS
    assert with_sizes(LEVELS, None) == LEVELS
    assert with_sizes(LEVELS, SIZES[:2]) == LEVELS


def test_fcos_states_its_limits() -> None:
    assert torchvision_bounds("fcos_resnet50_fpn") == [64, 128, 256, 512]
    assert built_bounds("fcos") == [64, 128, 256, 512]


def test_the_limits_of_fcos_follow_its_anchors() -> None:
    model = torchvision.models.get_model("fcos_resnet50_fpn", weights=None, weights_backbone=None, num_classes=1)
    anchors = AnchorGenerator(((4,), (12,), (32,), (64,), (128,)), ((1.0,),) * 5)
    model = FCOS(model.backbone, 1, anchor_generator=anchors)
    assert bounds_of(wrap_torchvision(model, ["a"]).levels) == [32, 96, 256, 512]


def test_retinanet_changes_level_between_the_octaves() -> None:
    # the largest anchor of P3 is int(32 * 2 ** (2 / 3)) = 50, the smallest of P4 is 64
    assert torchvision_bounds("retinanet_resnet50_fpn")[:2] == pytest.approx([math.sqrt(50 * 64), math.sqrt(101 * 128)])
    half_third = 2 ** (-1 / 6)  # a step between neighboring anchors is a third of an octave
    expected = [32 * half_third * 2**power for power in (1, 2, 3, 4)]
    assert built_bounds("retinanet") == pytest.approx(expected)
    assert built_bounds("retinanet", anchor_scale=2.0) == pytest.approx([bound / 2 for bound in expected])


def test_gfl_changes_level_between_its_anchors() -> None:
    expected = [64 * 2**0.5, 128 * 2**0.5, 256 * 2**0.5, 512 * 2**0.5]
    assert built_bounds("gfl", anchor_scale=8.0) == pytest.approx(expected)


@pytest.mark.parametrize("anchor_scale", [4.0, 8.0])
def test_faster_rcnn_changes_level_between_its_anchors_and_its_pooling(anchor_scale: float) -> None:
    # anchors of 4 or 8 strides of 4, 8, ... pixels; pooling leaves P2 at 112 pixels, P3 at 224, ...
    proposals = [anchor_scale * 4 * 2 ** (index + 0.5) for index in range(4)]
    expected = [math.sqrt(bound * 112 * 2**index) for index, bound in enumerate(proposals)]
    assert built_bounds("faster_rcnn", anchor_scale=anchor_scale) == pytest.approx(expected)
    if anchor_scale == 8:
        assert torchvision_bounds("fasterrcnn_resnet50_fpn") == pytest.approx(expected)


def test_a_region_of_a_bound_is_pooled_as_the_model_pools_it() -> None:
    detector = build_detector(DetectorConfig("faster_rcnn", "resnet10t", fpn_channels=16, pretrained=False), ["a"])
    mapper = detector.model.roi_heads.box_roi_pool.map_levels
    sides = torch.tensor([111.0, 113.0, 223.0, 225.0, 447.0, 449.0])
    boxes = torch.stack([torch.zeros(6), torch.zeros(6), sides, sides], dim=1)
    assert mapper([boxes]).tolist() == [0, 1, 1, 2, 2, 3]


def test_ssd_changes_level_between_its_default_boxes() -> None:
    scales = [0.2, 0.35, 0.5, 0.65, 0.8, 0.95]
    expected = [320 * math.sqrt(math.sqrt(fine * coarse) * coarse) for fine, coarse in pairwise(scales)]
    assert torchvision_bounds("ssdlite320_mobilenet_v3_large") == pytest.approx(expected)
    assert built_bounds("ssdlite") == pytest.approx(expected)


@pytest.mark.parametrize("anchor_scale", [4.0, 8.0])
@pytest.mark.parametrize("student", ["fcos", "retinanet"])
def test_a_one_stage_student_learns_from_the_next_finer_level_of_faster_rcnn(student: str, anchor_scale: float) -> None:
    pairs = pair_levels(built(student), built("faster_rcnn", anchor_scale), "auto")
    names = [(pair.student.name, pair.teacher.name) for pair in pairs]
    assert names == [("p3", "p2"), ("p4", "p3"), ("p5", "p4"), ("p6", "p5"), ("p7", "p6")]


@pytest.mark.parametrize(("student", "teacher"), [("fcos", "fcos"), ("retinanet", "fcos"), ("fcos", "gfl")])
def test_one_stage_detectors_learn_from_the_level_of_the_same_stride(student: str, teacher: str) -> None:
    pairs = pair_levels(built(student), built(teacher), "auto")
    assert [pair.student.stride for pair in pairs] == [pair.teacher.stride for pair in pairs] == [8, 16, 32, 64, 128]


def test_anchors_that_do_not_grow_state_no_sizes() -> None:
    name = "fasterrcnn_mobilenet_v3_large_fpn"  # all anchors on all levels
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=2)
    assert [level.sizes for level in wrap_torchvision(model, ["a"]).levels] == [None, None, None]


def test_sizes_of_a_caller_are_added() -> None:
    assert [level.sizes for level in stated_sizes(LEVELS, SIZES)] == SIZES
    overlapping = [(0.0, 60.0), (40.0, 90.0), (60.0, 200.0)]
    assert [level.sizes for level in stated_sizes(LEVELS, overlapping)] == overlapping


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (SIZES[:2], r"sizes: expected a range for each of 3 levels, got 2"),
        ([*SIZES[:2], (90.0, 90.0)], r"sizes: expected ranges \(lower, upper\) with 0 <= lower < upper"),
        ([(-1.0, 40.0), *SIZES[1:]], r"0 <= lower < upper"),
        ([SIZES[1], SIZES[0], SIZES[2]], r"that increase from level to level"),
        ([(0.0, math.nan), *SIZES[1:]], r"0 <= lower < upper"),
    ],
)
def test_impossible_sizes_are_refused(sizes: list[SizeRange], message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        stated_sizes(LEVELS, sizes)


@pytest.mark.parametrize("sizes", [None, (0.0, 64.0), (64.0, math.inf)])
def test_a_level_survives_json(sizes: tuple[float, float] | None) -> None:
    level = LevelSpec("p3", 64, 8, sizes)
    text = json.dumps(level.to_dict(), allow_nan=False)
    assert LevelSpec.from_dict(json.loads(text)) == level
    assert ("sizes" in text) == (sizes is not None)
