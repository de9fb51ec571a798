"""The adapters against torchvision's own forward pass, and the contract beyond it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers.fixtures import TINY_BACKBONE
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, RPNHead, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.ssd import SSD
from torchvision.ops import MultiScaleRoIAlign

from dfmsd.detectors import DETECTORS, DetectorConfig, TorchvisionDetector, wrap_torchvision
from dfmsd.detectors.registry import build_model
from dfmsd.detectors.torchvision.base import Float32Anchors, whole
from dfmsd.errors import DfmsdError
from dfmsd.types import Target

NAMES = ("a", "b", "c")
SIDE = 96
SIZES = [(64, 96), (96, 64)]


def _config(arch: str) -> DetectorConfig:
    return DetectorConfig(arch, TINY_BACKBONE, fpn_channels=16, head_convs=1)


def _retinanet_v2() -> RetinaNet:
    own = build_model(_config("retinanet"), len(NAMES))
    head = RetinaNetHead(16, 9, len(NAMES), norm_layer=partial(nn.GroupNorm, 8))
    head.regression_head._loss_type = "giou"
    return RetinaNet(own.backbone, len(NAMES), anchor_generator=own.anchor_generator, head=head)


def _two_stage(box_head: nn.Module, width: int) -> dict[str, Any]:
    return {
        "backbone": build_model(_config("faster_rcnn"), len(NAMES)).backbone,
        "rpn_anchor_generator": AnchorGenerator(tuple((4.0 * 2**n,) for n in range(2, 7)), ((0.5, 1.0, 2.0),) * 5),
        "box_roi_pool": MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=2),
        "box_head": box_head,
        "box_predictor": FastRCNNPredictor(width, len(NAMES) + 1),
    }


def _faster_rcnn_v2() -> FasterRCNN:
    head = FastRCNNConvFCHead((16, 7, 7), [16, 16], [32], norm_layer=nn.BatchNorm2d)
    return FasterRCNN(**_two_stage(head, 32), rpn_head=RPNHead(16, 3, conv_depth=2))


def _mask_rcnn() -> MaskRCNN:
    parts = _two_stage(TwoMLPHead(16 * 49, 32), 32)
    mask_predictor = MaskRCNNPredictor(8, 8, len(NAMES) + 1)
    return MaskRCNN(**parts, mask_head=MaskRCNNHeads(16, (8,), 1), mask_predictor=mask_predictor)


def _ssd() -> SSD:
    """An SSD with steps, as SSD300 has, on SSDLite's maps."""
    own = build_model(_config("ssdlite"), len(NAMES))
    scales = [0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0]
    boxes = DefaultBoxGenerator([[2], [2, 3], [2], [2], [2], [2]], scales=scales, steps=[16, 32, 64, 128, 256, 512])
    return SSD(own.backbone, boxes, (SIDE, SIDE), len(NAMES) + 1, score_thresh=0.05)


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    **{arch: partial(build_model, _config(arch), len(NAMES)) for arch in DETECTORS},
    "retinanet_v2": _retinanet_v2,
    "faster_rcnn_v2": _faster_rcnn_v2,
    "mask_rcnn": _mask_rcnn,
    "ssd": _ssd,
}
ARCHS = list(BUILDERS)
SSDS = ("ssdlite", "ssd")
BACKGROUND = ("faster_rcnn", "faster_rcnn_v2", "mask_rcnn", *SSDS)
"""Families whose label 0 is background."""


@cache
def _built(arch: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BUILDERS[arch]()


def _model(arch: str) -> nn.Module:
    return copy.deepcopy(_built(arch))


def _detector(arch: str) -> TorchvisionDetector:
    return wrap_torchvision(_model(arch), NAMES)


def _target(boxes: list[list[float]], labels: list[int]) -> Target:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


def _targets() -> list[Target]:
    return [_target([[8, 8, 40, 44], [50, 30, 62, 40]], [0, 2]), _target([[4, 10, 60, 80]], [1])]


def _targets_on_default_boxes(detector: TorchvisionDetector, images: Tensor) -> list[Target]:
    """One object on the first default box of each of SSD's levels, of every other level in each image."""
    maps = list(detector.features(images).values())
    boxes = detector.model.anchor_generator(whole(images), maps)[0]
    cells = torch.tensor([m.shape[2] * m.shape[3] for m in maps])
    counts = cells * torch.tensor(detector.model.anchor_generator.num_anchors_per_location())
    firsts = boxes[counts.cumsum(0) - counts].tolist()
    return [_target(firsts[::2], [0, 1, 2]), _target(firsts[1::2], [2, 0, 1])]


def _lively(model: torch.nn.Module, low_bias: float = -1.0) -> torch.nn.Module:
    """Spread the scores of classification layers, so that every class is detected."""
    for name, parameter in model.named_parameters():
        if "cls_logits" in name:
            torch.nn.init.normal_(parameter, low_bias if name.endswith("bias") else 0.0, 0.5)
        elif "cls_score" in name or "classification_head.module_list" in name:  # whose scores sum up to 1
            torch.nn.init.normal_(parameter, 0.0, 0.0 if name.endswith("bias") else 0.5)
    return model


def _reference(model: torch.nn.Module) -> torch.nn.Module:
    """Make torchvision's transform only normalize and pad."""
    reference = copy.deepcopy(model)
    reference.transform.min_size, reference.transform.max_size = (min(SIZES[0]),), SIDE
    if isinstance(model, SSD):
        reference.transform.fixed_size = (SIDE, SIDE)
    return reference


def _padded(images: list[Tensor], mean: Tensor) -> Tensor:
    """Pad as torchvision does after its normalization: with the mean color."""
    batch = mean.repeat(len(images), 1, SIDE, SIDE)
    for canvas, image in zip(batch, images, strict=True):
        canvas[:, : image.shape[1], : image.shape[2]] = image
    return batch


@pytest.mark.parametrize("arch", ARCHS)
def test_detections_equal_torchvisions_own(arch: str) -> None:
    model = _lively(_model(arch)).eval()
    last = getattr(model, "roi_heads", model)
    last.score_thresh, last.detections_per_img = 0.01, 1000
    reference = _reference(model)
    detector = wrap_torchvision(model, NAMES).eval()
    sizes = [(SIDE, SIDE)] * 2 if arch in SSDS else SIZES  # torchvision stretches what SSD sees
    images = [torch.rand(3, *size) for size in sizes]
    with torch.no_grad():
        expected = reference(images)
    found = detector.detect(_padded(images, detector.mean), sizes)
    offset = 1 if arch in BACKGROUND else 0
    for got, want in zip(found, expected, strict=True):
        assert len(want["scores"]) > 5
        assert len(set(want["labels"].tolist())) == len(NAMES)
        torch.testing.assert_close(got["boxes"], want["boxes"], atol=1e-4, rtol=0)
        torch.testing.assert_close(got["scores"], want["scores"], atol=1e-4, rtol=0)
        assert torch.equal(got["labels"], want["labels"] - offset)
        assert torch.equal(got["scores"], got["scores"].sort(descending=True).values)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("arch", ARCHS)
def test_losses_equal_torchvisions_own(arch: str, training: bool) -> None:
    model = _model(arch)
    reference = _reference(model)
    reference.transform.min_size = (SIDE,)
    reference.train()
    reference.transform.eval()  # in train mode it draws a size at random
    if not training:  # torchvision returns losses in train mode only: freeze layers that behave differently
        for module in reference.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
    detector = wrap_torchvision(model, NAMES).train(training)
    images = torch.rand(2, 3, SIDE, SIDE)
    offset = 1 if arch in BACKGROUND else 0
    own_targets = [{"boxes": t["boxes"], "labels": t["labels"] + offset} for t in _targets()]
    if arch == "mask_rcnn":
        own_targets = [{**t, "masks": torch.ones(len(t["boxes"]), SIDE, SIDE, dtype=torch.uint8)} for t in own_targets]
    torch.manual_seed(1)  # Faster R-CNN samples anchors and regions
    expected = reference(list(images), own_targets)
    if arch == "mask_rcnn":
        assert expected.pop("loss_mask") > 0
    torch.manual_seed(1)
    _, losses = detector(images, _targets())
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name])
    assert all(module.training == training for module in detector.modules())


@pytest.mark.parametrize("arch", list(DETECTORS))
def test_forward_and_features_give_one_pyramid(arch: str) -> None:
    detector = _detector(arch).eval()
    images = torch.rand(2, 3, 64, SIDE)
    with torch.no_grad():
        pyramid, _ = detector(images, _targets())
        features = detector.features(images)
    assert list(pyramid) == [level.name for level in detector.levels]
    for level in detector.levels:
        assert torch.equal(pyramid[level.name], features[level.name])
        # Odd sides round up: 64 / 128 is one cell.
        assert features[level.name].shape == (2, level.channels, -(-64 // level.stride), -(-SIDE // level.stride))


@pytest.mark.parametrize("arch", ARCHS)
def test_every_parameter_gets_a_gradient(arch: str) -> None:
    detector = _detector(arch)
    images = torch.rand(2, 3, SIDE, SIDE)
    targets = _targets_on_default_boxes(detector, images) if arch in SSDS else _targets()
    _, losses = detector(images, targets)
    torch.stack(list(losses.values())).sum().backward()
    learning = {name: value for name, value in detector.named_parameters() if value.requires_grad}
    assert [name for name, value in learning.items() if value.grad is None or not value.grad.any()] == []
    assert all(value.grad.isfinite().all() for value in learning.values())
    frozen = [name for name, _ in detector.named_parameters() if name not in learning]
    if arch == "mask_rcnn":  # its masks are not trained
        assert frozen == [name for name, _ in detector.named_parameters() if "mask" in name]
        assert len(frozen) == 6
    else:
        assert frozen == []


@pytest.mark.parametrize("arch", ARCHS)
def test_images_without_boxes_give_finite_losses_and_gradients(arch: str) -> None:
    detector = _detector(arch)
    images = torch.rand(2, 3, 64, 64)
    for targets in ([_target([], []), _target([], [])], [_target([[4, 4, 30, 30]], [1]), _target([], [])]):
        detector.zero_grad()
        _, losses = detector(images, targets)
        assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
        torch.stack(list(losses.values())).sum().backward()
        # A gradient for each parameter, be it zero: distributed training waits for all of them.
        learning = [value for value in detector.parameters() if value.requires_grad]
        assert all(value.grad is not None and value.grad.isfinite().all() for value in learning)


@pytest.mark.parametrize("arch", list(DETECTORS))
def test_autocast_and_channels_last(arch: str) -> None:
    detector = _detector(arch).to(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pyramid, losses = detector(images, _targets())
        torch.stack(list(losses.values())).sum().backward()
    _lively(detector)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # a new context: within one, cast weights are cached
        found = detector.eval().detect(images, [(64, 64)] * 2)
    assert {value.dtype for value in pyramid.values()} == {torch.bfloat16}
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in pyramid.values())
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    assert all(len(f["boxes"]) > 0 and f["boxes"].dtype == f["scores"].dtype == torch.float32 for f in found)


def test_anchors_stay_exact_on_bfloat16_maps() -> None:
    generator = AnchorGenerator(((20.0,),), ((1.0,),))
    images = ImageList(torch.zeros(1, 3, 8, 1024), [(8, 1024)])
    maps = torch.zeros(1, 4, 1, 128)
    (expected,) = generator(images, [maps])
    (got,) = Float32Anchors(generator)(images, [maps.bfloat16()])
    assert expected.max() == 1026
    assert torch.equal(got, expected)
    assert not torch.equal(generator(images, [maps.bfloat16()])[0].float(), expected)


def test_regions_are_pooled_at_the_true_scale_with_any_padding() -> None:
    detector = _as_detector("faster_rcnn")
    detector.detect(torch.rand(1, 3, 128, 128), [(32, 128)])
    assert detector.model.roi_heads.box_roi_pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]


@pytest.mark.parametrize("arch", list(DETECTORS))
def test_boxes_end_at_the_unpadded_size(arch: str) -> None:
    found = _as_detector(arch).detect(torch.rand(2, 3, SIDE, SIDE), [(40, 70), (SIDE, SIDE)])
    assert found[0]["boxes"][:, 0::2].max() <= 70
    assert found[0]["boxes"][:, 1::2].max() <= 40
    assert found[1]["boxes"][:, 1::2].max() > 40


def test_normalization_differs_from_model_to_model() -> None:
    config = DetectorConfig(backbone="tf_efficientnet_lite0", fpn_channels=8, head_convs=1)
    lite, small = wrap_torchvision(build_model(config, 3), NAMES).eval(), _as_detector("fcos")
    for detector, mean in ((lite, [0.5] * 3), (small, [0.485, 0.456, 0.406])):
        images = torch.tensor(mean).view(1, 3, 1, 1).expand(1, 3, 64, 64)
        with torch.no_grad():
            expected = detector.model.backbone(torch.zeros(1, 3, 64, 64))
            got = detector.features(images)
        for value, reference in zip(got.values(), expected.values(), strict=True):
            torch.testing.assert_close(value, reference)


def test_numpy_statistics_keep_images_float32() -> None:
    model: Any = _model("fcos")
    model.transform.image_mean = np.array([0.5, 0.5, 0.5])
    model.transform.image_std = np.array([0.25, 0.25, 0.25])
    detector = wrap_torchvision(model, NAMES)
    assert detector.mean.dtype == detector.std.dtype == torch.float32
    assert detector.features(torch.rand(1, 3, 64, 64))["p3"].dtype == torch.float32


def test_labels_of_a_model_with_gaps() -> None:
    model = _lively(build_model(_config("fcos"), 6), low_bias=0.0).eval()
    reference = _reference(model)
    images, names, ids = torch.rand(2, 3, SIDE, SIDE), ["x", "y"], [4, 1]
    detector = wrap_torchvision(model, names, ids).eval()
    detector.model.detections_per_img = reference.detections_per_img = 10_000
    reference.transform.min_size = (SIDE,)
    with torch.no_grad():
        expected = reference(list(images))
    for got, want in zip(detector.detect(images, [(SIDE, SIDE)] * 2), expected, strict=True):
        known = (want["labels"] == 4) | (want["labels"] == 1)
        assert 0 < known.sum() < len(known)
        assert torch.equal(got["scores"], want["scores"][known])
        assert torch.equal(got["labels"], (want["labels"][known] == 1).long())
    boxes = [[8.0, 8.0, 60.0, 60.0]]
    expected_loss = reference.train()(list(images), [_target(boxes, [4]), _target(boxes, [1])])["classification"]
    _, losses = detector.train()(images, [_target(boxes, [0]), _target(boxes, [1])])
    torch.testing.assert_close(losses["classification"], expected_loss)


def test_boxes_without_area_are_refused() -> None:
    with pytest.raises(DfmsdError, match="no area"):
        _as_detector("retinanet")(torch.rand(1, 3, 64, 64), [_target([[5, 5, 5, 20]], [0])])


def test_boxes_on_a_gpu_are_not_synchronized() -> None:
    detector = _detector("fcos").to("meta")  # whose values cannot be looked at, or it would raise
    targets = [{name: value.to("meta") for name, value in target.items()} for target in _targets()]
    own = detector._to_library_targets(targets)  # type: ignore[arg-type]
    assert [target["boxes"].shape for target in own] == [(2, 4), (1, 4)]


def test_unsupported_models_and_wrong_labels_are_refused() -> None:
    model = build_model(_config("fcos"), 2)
    assert isinstance(model, FCOS)
    with pytest.raises(DfmsdError, match=r"class_names: 'ab' is a single text; pass a list of names, \['ab'\]"):
        wrap_torchvision(model, "ab")
    with pytest.raises(DfmsdError, match="class_names: 'a' occurs 2 times"):
        wrap_torchvision(model, ["a", "a"])
    with pytest.raises(DfmsdError, match="one label id per class"):
        wrap_torchvision(model, ["a", "b"], [1])
    with pytest.raises(DfmsdError, match=r"label ids must lie in 0\.\.1, got 0\.\.2"):
        wrap_torchvision(model, ["a", "b", "c"])
    with pytest.raises(DfmsdError, match=r"KeypointRCNN is not supported: .* trained for their keypoints"):
        wrap_torchvision(object.__new__(KeypointRCNN), ["a"])
    with pytest.raises(DfmsdError, match="Linear is not supported: expected torchvision's FCOS, RetinaNet, FasterRCNN"):
        wrap_torchvision(nn.Linear(1, 1), ["a"])


@pytest.mark.parametrize("arch", BACKGROUND)
def test_label_0_is_background(arch: str) -> None:
    assert _detector(arch).label_ids.tolist() == [1, 2, 3]
    with pytest.raises(DfmsdError, match=r"label ids must lie in 0\.\.3, got 1\.\.4"):
        wrap_torchvision(_model(arch), [*NAMES, "d"])


def test_masks_stay_in_the_state_dict_and_are_not_run() -> None:
    model = _model("mask_rcnn")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    detector = wrap_torchvision(model, NAMES).eval()
    after = detector.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    ran = []
    model.roi_heads.mask_head.register_forward_hook(lambda *_: ran.append(True))
    assert detector.detect(torch.rand(1, 3, 64, 64), [(64, 64)])[0].keys() == {"boxes", "scores", "labels"}
    assert ran == []


def test_copies_are_independent() -> None:
    detector = _as_detector("faster_rcnn")
    twin, images = copy.deepcopy(detector), torch.rand(1, 3, 64, 64)
    first, second = (each.detect(images, [(64, 64)])[0] for each in (detector, twin))
    assert torch.equal(first["boxes"], second["boxes"])
    assert not {id(p) for p in detector.parameters()} & {id(p) for p in twin.parameters()}


def _as_detector(arch: str) -> TorchvisionDetector:
    return wrap_torchvision(_lively(_model(arch)), NAMES).eval()
