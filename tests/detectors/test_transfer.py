"""Weights of a trained detector in one for other classes: what is kept, row by row, and what is new."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.helpers.fixtures import TINY_BACKBONE
from torch import nn

from dfmsd.detectors import Detector, DetectorConfig, ModuleDetector, build_detector
from dfmsd.detectors.transfer import keep_weights
from dfmsd.errors import DfmsdError

OLD = ("cat", "dog", "bird")
NEW = ("fish", "Bird", "cat")
PREDICTORS = {
    "fcos": ["head.classification_head.cls_logits"],
    "retinanet": ["head.classification_head.cls_logits"],
    "gfl": ["head.classification_head.cls_logits"],
    "faster_rcnn": ["roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"],
    "ssdlite": [f"head.classification_head.module_list.{level}.1" for level in range(6)],
}


def detector(arch: str, names: tuple[str, ...], seed: int = 0) -> Detector:
    torch.manual_seed(seed)
    built = build_detector(DetectorConfig(arch, TINY_BACKBONE, fpn_channels=8, head_convs=1), names)
    for parameter in built.parameters():  # so that no two rows are alike
        nn.init.normal_(parameter)
    return built


def scores_of(arch: str, model: Any, labels: int) -> torch.Tensor:
    """Return a predictor's weights as rows x labels x weights, whatever its layout."""
    weight: torch.Tensor = model.get_submodule(PREDICTORS[arch][-1]).weight.clone()
    if arch == "faster_rcnn":
        return weight.unflatten(0, (labels, 4)).transpose(0, 1)
    return weight.unflatten(0, (-1, labels))


@pytest.mark.parametrize("arch", PREDICTORS)
def test_rows_of_common_classes_are_kept_and_all_else_that_has_no_classes(arch: str) -> None:
    trained, student = detector(arch, OLD), detector(arch, NEW, seed=1)
    initial = {key: value.clone() for key, value in student.model.state_dict().items()}
    line = keep_weights(student, trained, "runs/x")
    now, source = student.model.state_dict(), trained.model.state_dict()
    of_classes = {key for key in now if key.rpartition(".")[0] in PREDICTORS[arch]}
    assert all(torch.equal(now[key], source[key]) for key in now.keys() - of_classes)
    background = arch in ("faster_rcnn", "ssdlite")
    labels = 3 + background
    old, new = scores_of(arch, trained.model, labels), scores_of(arch, student.model, labels)
    student.model.load_state_dict(initial)
    first = scores_of(arch, student.model, labels)
    pairs = {name: index + background for index, name in enumerate(("fish", "bird", "cat"))}
    assert torch.equal(new[:, pairs["fish"]], first[:, pairs["fish"]])
    for name in ("bird", "cat"):
        assert torch.equal(new[:, pairs[name]], old[:, OLD.index(name) + background])
    if background:
        assert torch.equal(new[:, 0], old[:, 0])
    count = len([key for key in now if "num_batches" not in key])
    assert f"kept {count - len(of_classes)} of {count} tensors of runs/x; classes differ (3 -> 3), so in" in line
    assert line.endswith(": kept Bird, cat, new fish")


def test_the_same_classes_in_another_order_keep_everything() -> None:
    trained, student = detector("fcos", OLD), detector("fcos", OLD[::-1], seed=1)
    line = keep_weights(student, trained, "runs/x")
    rows = student.model.head.classification_head.cls_logits.weight
    assert torch.equal(rows, trained.model.head.classification_head.cls_logits.weight.flip(0))
    assert line.startswith("kept all ")


def test_without_common_classes_the_line_names_the_new_ones() -> None:
    line = keep_weights(detector("fcos", ("a", "b", "c", "d", "e")), detector("fcos", OLD), "runs/x")
    assert line.endswith("classes differ (3 -> 5), so in head.classification_head.cls_logits: new a, b, c and 2 more")


class Pool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p3, self.p4 = nn.Conv2d(3, 4, 8, stride=8), nn.Conv2d(4, 4, 2, stride=2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.p4(self.p3(images))  # type: ignore[no-any-return]


def test_layers_of_unknown_meaning_are_kept_for_the_same_classes_only() -> None:
    def wrapped(names: tuple[str, ...]) -> ModuleDetector:
        return ModuleDetector(Pool(), ["p3", "p4"], names, mean=[0.0] * 3, std=[1.0] * 3)

    trained, student = wrapped(OLD), wrapped(OLD)
    keep_weights(student, trained, "x")
    assert torch.equal(student.model.p3.weight, trained.model.p3.weight)
    with pytest.raises(DfmsdError, match="ModuleDetector that depend on its classes are unknown"):
        keep_weights(wrapped(NEW), trained, "x")


class Normalized(nn.Module):
    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2, eps=epsilon)


def test_a_normalization_with_another_epsilon_gives_the_same_output() -> None:
    trained, student = detector("fcos", OLD), detector("fcos", OLD, seed=1)
    trained.model, student.model = Normalized(0.0).eval(), Normalized(1e-2).eval()
    trained.model.norm.running_var.copy_(torch.tensor([0.5, 0.02]))
    keep_weights(student, trained, "x")
    images = torch.rand(1, 2, 4, 4)
    torch.testing.assert_close(student.model.norm(images), trained.model.norm(images))
