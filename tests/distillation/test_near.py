"""What a near teacher needs, as far as the config says."""

from __future__ import annotations

from typing import Any

import pytest

from dfmsd.detectors import DetectorConfig
from dfmsd.distillation.near import obstacle
from dfmsd.distillation.stages import NearConfig, StageConfig
from dfmsd.errors import DfmsdError
from dfmsd.losses import LossConfig


@pytest.mark.parametrize(
    ("epochs", "share", "lengths"),
    [(9, None, (3, 6)), (2, None, (1, 1)), (12, None, (4, 8)), (9, 0.5, (4, 5)), (10, 0.9, (9, 1))],
)
def test_the_near_teacher_has_its_share_of_the_epochs(
    epochs: int, share: float | None, lengths: tuple[int, int]
) -> None:
    near = NearConfig() if share is None else NearConfig(share=share)
    assert StageConfig(epochs, "runs/a", near=near).lengths == lengths


def test_a_stage_without_a_near_teacher_stays_whole() -> None:
    assert StageConfig(9, "runs/a").lengths == StageConfig(9, "runs/a", near="auto").lengths == (9,)


def test_true_and_a_mapping_are_configs() -> None:
    assert StageConfig(9, "runs/a", near=True).near == NearConfig()
    assert StageConfig(9, "runs/a", near={"bridge": True}).near == NearConfig(bridge=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "near.epochs must be at least 1, got 0"),
        ({"share": 1}, "near.share must be above 0 and below 1, got 1.0"),
        ({"share": float("nan")}, "near.share must be above 0 and below 1, got nan"),
        ({"backbone": ""}, "near.backbone is empty"),
        ({"out": "a\0b"}, "near.out: 'a"),
        ({"bridges": True}, "near.bridges is not known; did you mean bridge?"),
        ("yes please", "near must be true, false, auto or a mapping with keys of NearConfig, got 'yes please'"),
    ],
)
def test_a_wrong_value_is_refused(values: Any, message: str) -> None:
    with pytest.raises(DfmsdError) as refused:
        StageConfig(9, "runs/a", near=values)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("stage", "student", "loss", "reason"),
    [
        ({"teacher": None}, "fcos", "dfmsd", "the stage has no teachers"),
        ({"teacher": ["a", "b"]}, "fcos", "dfmsd", "the stage has 2 teachers"),
        ({}, "hf:some/detr", "dfmsd", "hf:some/detr brings its own backbone"),
        ({}, "python:mine.Detector", "dfmsd", "python:mine.Detector brings its own backbone"),
        ({}, "fasterrcnn_resnet50_fpn", "dfmsd", "fasterrcnn_resnet50_fpn brings its own backbone"),
        ({"basis": "student"}, "fcos", "dfmsd", "a is rotated into the near teacher's channels"),
        ({"fresh": False}, "fcos", "dfmsd", "new layers"),
        ({}, "fcos", [{"name": "pkd"}, {"name": "crosskd"}], "crosskd compares predictions"),
        ({"epochs": 1}, "fcos", "dfmsd", "a share of 0.33 of 1 epoch(s) leaves none for the near teacher"),
        ({"near": {"share": 0.99}}, "fcos", "dfmsd", "a share of 0.99 of 9 epoch(s) leaves none for a"),
        ({"teacher": "python:teacher1", "near": {"bridge": True}}, "fcos", "dfmsd", "exists in this program only"),
    ],
)
def test_what_keeps_a_stage_from_having_one(stage: dict[str, Any], student: str, loss: LossConfig, reason: str) -> None:
    found = obstacle(StageConfig(**{"epochs": 9, "teacher": "a", "near": True, **stage}), DetectorConfig(student), loss)
    assert found is not None
    assert reason in found.reason


@pytest.mark.parametrize("arch", ["fcos", "retinanet", "gfl", "faster_rcnn", "ssdlite"])
def test_nothing_keeps_an_own_architecture_from_having_one(arch: str) -> None:
    assert obstacle(StageConfig(9, "timm:resnet50", near=True), DetectorConfig(arch), "dfmsd") is None
