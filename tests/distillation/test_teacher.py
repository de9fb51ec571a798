from __future__ import annotations

import pytest
import torch
from tests.helpers.fixtures import STUDENT
from torch import Tensor

from dfmsd.detectors import build_detector
from dfmsd.distillation.teacher import FrozenTeacher

IMAGES = torch.rand(1, 3, 64, 64)


def features(compute_dtype: torch.dtype | None) -> Tensor:
    torch.manual_seed(0)
    return FrozenTeacher(build_detector(STUDENT, ("thing",)), "big", compute_dtype).features(IMAGES)["p3"]


def test_a_teacher_computes_in_its_own_dtype_whatever_the_autocast_around_it() -> None:
    full = features(torch.float32)
    assert full.dtype == torch.float32
    half = features(torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert 0 < float((half.float() - full).norm() / full.norm()) < 0.05
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(features(torch.float32), full)
        assert torch.equal(features(None), half)
    assert torch.equal(features(None), full)


@pytest.mark.parametrize("part", ["model", "model.backbone.body", "model.head"])
def test_a_teacher_switched_to_training_is_switched_back(part: str) -> None:
    teacher = FrozenTeacher(build_detector(STUDENT, ("thing",)), "big")
    expected = teacher.features(IMAGES)["p3"]
    teacher.detector.get_submodule(part).train()
    assert torch.equal(teacher.features(IMAGES)["p3"], expected)
    assert not any(module.training for module in teacher.detector.modules())
