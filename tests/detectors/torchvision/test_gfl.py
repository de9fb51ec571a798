"""GFL: boxes as distributions, losses, detections and saving."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.helpers.fixtures import TINY_BACKBONE
from torch import Tensor
from torch.testing import assert_close
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.image_list import ImageList

from dfmsd.detectors import DetectorConfig, TorchvisionDetector, build_detector, load_detector, save_detector
from dfmsd.detectors.torchvision.gfl import GFL, DistributionCoder
from dfmsd.detectors.torchvision.gfl_loss import assign, distribution_focal_loss, pad_objects
from dfmsd.types import Target
from dfmsd.utils.boxes import elementwise_iou

NAMES = ("a", "b")
SIDE = 64


def detector(**values: object) -> TorchvisionDetector:
    config = DetectorConfig(**{"arch": "gfl", "backbone": TINY_BACKBONE, "fpn_channels": 16, "head_convs": 1, **values})  # type: ignore[arg-type]
    return build_detector(config, NAMES)


def lively(**values: object) -> TorchvisionDetector:
    """A detector whose predictions differ between anchors."""
    found = detector(**values)
    for parameter in found.model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return found


def target(*objects: tuple[list[float], int]) -> Target:
    return {
        "boxes": torch.tensor([box for box, _ in objects], dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([label for _, label in objects], dtype=torch.long),
    }


TARGETS = [target(([8, 8, 40, 44], 0), ([30, 20, 62, 50], 1)), target()]


def one_hot(*bins: int) -> Tensor:
    """Logits of one-hot distributions."""
    return 100 * torch.nn.functional.one_hot(torch.tensor(bins), 17).double().flatten()


def test_the_integral_is_the_expectation() -> None:
    box_deltas = torch.randn(3, 68, dtype=torch.float64)
    found = DistributionCoder(4.0).integral(box_deltas)
    for row in range(3):
        for side in range(4):
            weights = [float(value.exp()) for value in box_deltas[row, 17 * side : 17 * side + 17]]
            assert_close(float(found[row, side]), sum(k * w for k, w in enumerate(weights)) / sum(weights))
    assert_close(DistributionCoder(4.0).integral(one_hot(0, 1, 16, 5)), torch.tensor([0.0, 1, 16, 5]).double())


def test_boxes_are_distances_from_the_center_in_strides() -> None:
    coder = DistributionCoder(anchor_scale=4.0)
    anchor = torch.tensor([[16.0, 0.0, 48.0, 32.0]]).double()  # stride 8, center (32, 16)
    box = coder.decode_single(one_hot(1, 2, 3, 0)[None], anchor)
    assert_close(box, torch.tensor([[24.0, 0.0, 56.0, 16.0]]).double())
    assert_close(coder.encode_single(box, anchor), torch.tensor([[1.0, 2.0, 3.0, 0.0]]).double())
    far = torch.tensor([[40.0, -500.0, 500.0, 20.0]]).double()  # its left side is right of the center
    assert_close(coder.encode_single(far, anchor), torch.tensor([[0.0, 15.9, 15.9, 0.5]]).double())


@pytest.mark.parametrize("scale", [2.0, 4.0, 8.0])
def test_distances_do_not_depend_on_the_anchor_scale(scale: float) -> None:
    found = detector(anchor_scale=scale)
    assert [sizes for (sizes,) in found.model.anchor_generator.sizes] == [scale * 2**i for i in range(3, 8)]
    pyramid, _, seen = found.forward_with_head(torch.rand(1, 3, 128, 128), TARGETS[:1], 0)
    for level, name in zip(found.levels, pyramid, strict=True):
        anchors = seen.anchors[name]
        box_deltas = one_hot(1, 1, 1, 1).expand(1, len(anchors), -1)
        boxes = found.dense_head.decode(box_deltas, anchors)
        assert_close(boxes[0, :, 2:] - boxes[0, :, :2], torch.full((len(anchors), 2), 2.0 * level.stride).double())


def test_the_losses_are_the_published_sums() -> None:
    """Anchor by anchor, as in the official code."""
    found = lively()
    _, losses, seen = found.forward_with_head(torch.rand(2, 3, SIDE, SIDE), TARGETS, 0)
    anchors = torch.cat(list(seen.anchors.values()))
    logits, box_deltas = (torch.cat(list(part.values()), dim=1).detach() for part in (seen.logits, seen.box_deltas))
    counts = [len(level) for level in seen.anchors.values()]
    matched = [assign(anchors, counts, pad_objects([t["boxes"]], [t["labels"]])[0]).matched[0] for t in TARGETS]
    quality, regression, distribution, total, positives = 0.0, 0.0, 0.0, 0.0, 0
    for n, each in enumerate(TARGETS):
        count = 0
        for i, score in enumerate(logits[n].sigmoid().tolist()):
            index = int(matched[n][i])
            wanted = [0.0, 0.0]
            if index >= 0:
                count += 1
                box, weight = each["boxes"][index], max(score)
                overlap = elementwise_iou(
                    found.dense_head.decode(box_deltas[n : n + 1, i : i + 1], anchors[i : i + 1])[0, 0], box
                )
                wanted[int(each["labels"][index])] = float(overlap.iou)
                regression += weight * (1 - float(overlap.giou))
                x, y = (anchors[i, :2] + anchors[i, 2:]) / 2
                stride = (anchors[i, 2] - anchors[i, 0]) / 4
                sides = torch.stack([x - box[0], y - box[1], box[2] - x, box[3] - y]) / stride
                loss = distribution_focal_loss(box_deltas[n, i].view(4, 17), sides.clamp(0, 15.9))
                distribution += weight * float(loss.sum()) / 4
                total += weight
            for p, q in zip(score, wanted, strict=True):
                p_, q_ = torch.tensor(p).double(), torch.tensor(q).double()
                quality -= float((q_ - p_) ** 2 * (q_ * p_.log() + (1 - q_) * (1 - p_).log()))
        positives += max(count, 1)
    assert positives > 3
    assert total > 1
    expected = {
        "classification": quality / positives,
        "bbox_regression": 2 * regression / total,
        "distribution": 0.25 * distribution / total,
    }
    assert_close({name: float(value.detach()) for name, value in losses.items()}, expected, rtol=1e-5, atol=0)


def test_a_batch_without_objects_trains_only_the_scores() -> None:
    found = detector()
    _, losses = found(torch.rand(2, 3, SIDE, SIDE), [target(), target()])
    assert losses["bbox_regression"] == losses["distribution"] == 0
    assert losses["classification"] > 0
    torch.stack(list(losses.values())).sum().backward()
    head = found.model.head
    assert all(not value.grad.any() for value in head.regression_head.parameters())
    assert all(value.grad.isfinite().all() for value in found.parameters())
    assert head.classification_head.cls_logits.bias.grad.any()


def test_an_object_beyond_the_image_and_huge_logits_stay_finite() -> None:
    found = detector()
    with torch.no_grad():
        found.model.head.regression_head.scales.fill_(1e4)
    _, losses = found(torch.rand(1, 3, SIDE, SIDE), [target(([-500, -500, 900, 900], 0), ([3, 3, 3.2, 3.2], 1))])
    torch.stack(list(losses.values())).sum().backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(value.grad.isfinite().all() for value in found.parameters())


def test_tower_and_prior_equal_fcos() -> None:
    ours, theirs = detector(head_convs=2), detector(arch="fcos", head_convs=2)
    shapes = [{key: value.shape for key, value in found.model.state_dict().items()} for found in (ours, theirs)]
    differing = {key for key in shapes[0].keys() | shapes[1].keys() if shapes[0].get(key) != shapes[1].get(key)}
    part = "head.regression_head"
    outputs = {f"{part}.{name}.{kind}" for name in ("bbox_reg", "bbox_ctrness") for kind in ("weight", "bias")}
    assert differing == {f"{part}.scales", *outputs}
    assert_close(ours.model.head.classification_head.cls_logits.bias.sigmoid(), torch.full((2,), 0.01))
    assert isinstance(ours.model, GFL)
    assert isinstance(ours.model, RetinaNet)


def test_matching_reads_the_levels_from_the_anchors() -> None:
    """The plain model, called like torchvision's, gets no counts."""
    found = detector()
    images = torch.rand(2, 3, SIDE, SIDE)
    maps = found._maps(images)
    outputs, anchors, _ = found._heads(ImageList(images, [(SIDE, SIDE)] * 2), maps)  # type: ignore[attr-defined]
    assert_close(found.model.compute_loss(TARGETS, outputs, anchors), found(images, TARGETS)[1])


def test_it_learns_to_find_boxes() -> None:
    """Train on two images with one bright box each: the loss falls, and both boxes are detected."""
    boxes = torch.tensor([[8.0, 12.0, 36.0, 40.0], [24.0, 20.0, 58.0, 60.0]])
    images = torch.zeros(2, 3, SIDE, SIDE)
    targets: list[Target] = []
    for index, box in enumerate(boxes):
        x1, y1, x2, y2 = box.int().tolist()
        images[index, index, y1:y2, x1:x2] = 1.0
        targets.append({"boxes": box[None], "labels": torch.tensor([index])})
    found = detector(fpn_channels=32)
    optimizer = torch.optim.AdamW(found.parameters(), lr=1e-2)
    history = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = torch.stack(list(found(images, targets)[1].values())).sum()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert sum(history[-5:]) < 0.4 * sum(history[:5])
    for index, detections in enumerate(found.detect(images, [(SIDE, SIDE)] * 2)):
        assert int(detections["labels"][0]) == index
        assert detections["scores"][0] > 0.3
        assert elementwise_iou(detections["boxes"][0], boxes[index]).iou > 0.7


def test_saved_and_loaded_it_detects_the_same(tmp_path: Path) -> None:
    found = lively(anchor_scale=2.0).eval()
    save_detector(found, tmp_path)
    again = load_detector(tmp_path)
    assert again.config == found.config
    assert_close(dict(again.state_dict()), dict(found.state_dict()), rtol=0, atol=0)
    images = torch.rand(1, 3, SIDE, SIDE)
    for each in (found, again):
        each.model.nms_thresh = 1.0
    mine, theirs = (each.detect(images, [(SIDE, SIDE)])[0] for each in (found, again))
    assert len(mine["boxes"]) == 100
    assert_close(dict(theirs), dict(mine), rtol=0, atol=0)
