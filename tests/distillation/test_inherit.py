from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.helpers.few_neurons import FewNeurons
from tests.helpers.fixtures import TINY_BACKBONE
from torch import nn
from torch.testing import assert_close

from dfmsd.detectors import DetectorConfig, TorchvisionDetector, build_detector, wrap_torchvision
from dfmsd.detectors.registry import build_model
from dfmsd.distillation.inherit import inherit, inherit_first_fitting
from dfmsd.errors import DfmsdError

NAMES = ("a", "b")
LAYERS, EXTRA = "backbone.fpn.layer_blocks", "backbone.fpn.extra_blocks"


def detector(arch: str = "fcos", names: tuple[str, ...] = NAMES, **values: Any) -> TorchvisionDetector:
    built = build_detector(
        DetectorConfig(**{"arch": arch, "backbone": TINY_BACKBONE, "fpn_channels": 16, "head_convs": 1, **values}),
        names,
    )
    for parameter in built.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter)  # or equal biases would look like copied ones
    return built.eval()


def changed(student: TorchvisionDetector, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in student.model.state_dict().items() if not torch.equal(value, before[name])}


def test_exactly_the_neck_outputs_and_the_head_are_copied() -> None:
    student, teacher = detector(), detector(backbone="tf_efficientnet_lite0")
    before = copy.deepcopy(student.model.state_dict())
    parts = inherit(student, teacher, "big").parts
    head = [
        f"head.{part}.{layer}.{kind}"
        for part, last in (("classification_head", ["cls_logits"]), ("regression_head", ["bbox_reg", "bbox_ctrness"]))
        for layer in ("conv.0", "conv.1", *last)
        for kind in ("weight", "bias")
    ]
    layers = [f"{LAYERS}.{i}.0.{kind}" for i in range(3) for kind in ("weight", "bias")]
    extra = [f"{EXTRA}.{level}.{kind}" for level in ("p6", "p7") for kind in ("weight", "bias")]
    assert parts == {LAYERS: layers, EXTRA: extra, "head": head}
    assert changed(student, before) == {*layers, *extra, *head}
    mine, given = student.model.state_dict(), teacher.model.state_dict()
    for name in (*layers, *extra, *head):
        assert torch.equal(mine[name], given[name])
        assert mine[name].data_ptr() != given[name].data_ptr()


def test_the_student_reads_the_teachers_features_as_the_teacher_does() -> None:
    student, teacher = detector(), detector(backbone="tf_efficientnet_lite0")
    levels = list(teacher.features(torch.rand(1, 3, 64, 64)).values())
    with torch.no_grad():
        expected = teacher.model.head(levels)
        assert not torch.equal(student.model.head(levels)["cls_logits"], expected["cls_logits"])
        inherit(student, teacher, "big")
        assert_close(student.model.head(levels), expected, rtol=0, atol=0)


def test_gfl_inherits_its_neck_and_its_head_with_the_scales() -> None:
    student, teacher = detector("gfl"), detector("gfl", backbone="tf_efficientnet_lite0")
    parts = inherit(student, teacher, "big").parts
    assert list(parts) == [LAYERS, EXTRA, "head"]
    assert "head.regression_head.scales" in parts["head"]
    levels = list(teacher.features(torch.rand(1, 3, 64, 64)).values())
    assert_close(student.model.head(levels), teacher.model.head(levels), rtol=0, atol=0)
    with pytest.raises(DfmsdError, match=r"arch differ: gfl \(student\), fcos \(big\)"):
        inherit(student, detector(), "big")
    with pytest.raises(DfmsdError, match=r"anchors differ: .*set student\.anchor_scale"):
        inherit(student, detector("gfl", anchor_scale=8.0), "big")


def test_levels_derived_from_another_backbone_are_not_inherited() -> None:
    student, teacher = detector("retinanet"), detector("retinanet", backbone="tf_efficientnet_lite0")
    before = copy.deepcopy(student.model.state_dict())
    assert list(inherit(student, teacher, "big").parts) == [LAYERS, "head"]  # P6 is made of C5, as wide as the backbone
    assert not any(name.startswith(EXTRA) for name in changed(student, before))


def test_two_stage_detectors_inherit_both_heads() -> None:
    student, teacher = detector("faster_rcnn"), detector("faster_rcnn", backbone="tf_efficientnet_lite0")
    parts = inherit(student, teacher, "big").parts
    assert list(parts) == [LAYERS, "head"]  # the last level is a subsampled one, without weights
    assert {name.split(".")[0] for name in parts["head"]} == {"rpn", "roi_heads"}
    assert torch.equal(
        student.model.roi_heads.box_predictor.cls_score.weight, teacher.model.roi_heads.box_predictor.cls_score.weight
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"arch": "retinanet"}, r"arch differ: fcos \(student\), retinanet \(big\); set student\.arch"),
        ({"names": ("c", "d")}, r"classes differ: a, b \(student\), c, d \(big\); train the teacher"),
        ({"fpn_channels": 32}, r"differ in \d+ shape\(s\): head\.classification_head\.conv\.0\.weight 16x16x3x3 and "),
        ({"head_convs": 2}, r"conv\.3\.weight none and 16x16x3x3, .*set student\.fpn_channels and student\.head_convs"),
    ],
)
def test_detectors_that_do_not_match_are_refused_and_nothing_is_copied(values: dict[str, Any], message: str) -> None:
    student = detector()
    before = copy.deepcopy(student.model.state_dict())
    with pytest.raises(DfmsdError, match=rf"inherit: .*{message}") as caught:
        inherit(student, detector(**values), "big")
    assert "\n" not in str(caught.value)
    assert changed(student, before) == set()


def test_other_anchors_are_refused() -> None:
    with pytest.raises(DfmsdError, match=r"anchors differ: .*set student\.anchor_scale"):
        inherit(detector("retinanet"), detector("retinanet", anchor_scale=2.0), "big")


def scores(of: TorchvisionDetector, levels: list[torch.Tensor]) -> torch.Tensor:
    return of.model.head(levels)["cls_logits"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("arch", ["fcos", "retinanet", "gfl"])
def test_the_teachers_classes_may_have_another_order_and_others_between_them(arch: str) -> None:
    student, teacher = detector(arch), detector(arch, ("B", "c", "a"))
    before = copy.deepcopy(student.model.state_dict())
    line = inherit(student, teacher, "big").line
    assert line == f"student starts with {LAYERS}, {EXTRA}, head of big"
    assert "head.regression_head.bbox_reg.weight" in changed(student, before)
    levels = list(teacher.features(torch.rand(1, 3, 64, 64)).values())
    with torch.no_grad():
        assert_close(scores(student, levels), scores(teacher, levels)[..., [2, 0]], rtol=0, atol=0)


def test_both_predictors_of_a_two_stage_detector_follow_the_classes() -> None:
    student, teacher = detector("faster_rcnn"), detector("faster_rcnn", ("b", "a"))
    inherit(student, teacher, "big")
    regions = torch.rand(3, student.model.roi_heads.box_predictor.cls_score.in_features)
    with torch.no_grad():
        mine, given = (one.model.roi_heads.box_predictor(regions) for one in (student, teacher))
    assert_close(mine[0], given[0][:, [0, 2, 1]], rtol=0, atol=0)
    assert_close(mine[1].view(3, 3, 4), given[1].view(3, 3, 4)[:, [0, 2, 1]], rtol=0, atol=0)


def test_labels_of_the_model_may_have_another_order() -> None:
    config = DetectorConfig("fcos", TINY_BACKBONE, fpn_channels=16, head_convs=1)
    student, swapped = detector(), wrap_torchvision(build_model(config, 2), NAMES, [1, 0])
    inherit(student, swapped, "big")
    predictor = "head.classification_head.cls_logits.weight"
    assert torch.equal(student.model.get_parameter(predictor), swapped.model.get_parameter(predictor).flip(0))


def test_classes_that_the_teacher_lacks_are_new_and_told() -> None:
    student, teacher = detector(names=("a", "b", "c")), detector(names=("c", "a"))
    before = copy.deepcopy(student.model.state_dict())
    line = inherit(student, teacher, "big").line
    layer = "head.classification_head.cls_logits"
    assert line == (
        f"student starts with {LAYERS}, {EXTRA}, head of big; classes differ (2 -> 3), so in {layer}: kept a, c, new b"
    )
    rows, given = (one.model.get_parameter(f"{layer}.weight") for one in (student, teacher))
    assert torch.equal(rows[[0, 2]], given[[1, 0]])
    assert torch.equal(rows[1], before[f"{layer}.weight"][1])


def test_an_unknown_type_of_detector_is_refused() -> None:
    with pytest.raises(DfmsdError, match="the neck and head of FewNeurons are unknown"):
        inherit(detector(), FewNeurons(), "big")


def test_the_first_teacher_that_fits_is_inherited_from() -> None:
    student, teacher = detector(), detector(backbone="tf_efficientnet_lite0")
    line = inherit_first_fitting(student, {"other": detector("gfl"), "fitting": teacher, "late": detector()})
    assert line == f"student starts with {LAYERS}, {EXTRA}, head of fitting"
    bias = "classification_head.cls_logits.bias"
    assert torch.equal(student.model.head.get_parameter(bias), teacher.model.head.get_parameter(bias))


def test_without_a_fitting_teacher_nothing_is_inherited_and_the_reasons_are_told() -> None:
    student = detector()
    before = copy.deepcopy(student.model.state_dict())
    line = inherit_first_fitting(student, {"a": FewNeurons(), "b": detector("gfl"), "c": detector(fpn_channels=32)})
    assert line.startswith(
        "student inherits nothing: the neck and head of FewNeurons are unknown; "
        "arch differ: fcos (student), gfl (b); the heads of the student and of c differ in "
    )
    assert "\n" not in line
    assert changed(student, before) == set()
    assert inherit_first_fitting(student, {}) == "student inherits nothing: the first stage has no teacher"
