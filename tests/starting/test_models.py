from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from dfmsd.detectors import DetectorConfig
from dfmsd.errors import DfmsdError
from dfmsd.starting import models
from dfmsd.starting.facts import TeacherFacts
from dfmsd.starting.models import Keys, choose_student, choose_teacher, fits_inheriting

MakeTeacher = Callable[..., TeacherFacts]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Backbones whose ImageNet weights an installed package holds."""
    names = ["tf_efficientnet_lite0", "tf_efficientnet_lite2"]
    monkeypatch.setattr(models, "pip_weights", lambda backbone: Path("weights.pth") if backbone in names else None)
    return names


def values(keys: Keys) -> dict[str, object]:
    return {name: choice.value for name, choice in keys.items()}


def test_the_student_is_like_its_teacher_and_smaller(teacher: MakeTeacher, installed: list[str]) -> None:
    shape = {"fpn_channels": 64, "head_convs": 2}
    lite = {"arch": "fcos", "backbone": "tf_efficientnet_lite0", **shape, "pretrained": True, "frozen_stride": 4}
    small = {"arch": "fcos", "backbone": "mobilenetv3_small_050", **shape, "pretrained": False}
    assert values(choose_student(teacher(), None)) == lite
    assert values(choose_student(None, None)) == lite
    assert values(choose_student(teacher(parameters=3_400_000), None)) == small
    why = choose_student(teacher(parameters=100_000), None)["backbone"].why
    assert re.fullmatch(r"0\.\d M parameters with head and pyramid; the teacher has 0\.1 M", why)
    installed.clear()
    assert values(choose_student(teacher(), None)) == small


def test_the_students_shape_follows_the_teachers(teacher: MakeTeacher, installed: list[str]) -> None:
    retinanet = values(choose_student(teacher(arch="retinanet", channels=96, head_convs=3), None))
    assert (retinanet["arch"], retinanet["fpn_channels"], retinanet["head_convs"]) == ("retinanet", 96, 3)
    wide = values(choose_student(teacher(channels=256, head_convs=4), None))
    assert (wide["fpn_channels"], wide["head_convs"]) == (64, 4)
    other = choose_student(teacher(arch="faster_rcnn"), None)
    assert other["arch"].value == "fcos"
    assert "faster_rcnn" in other["arch"].why


def test_a_named_student_is_completed(teacher: MakeTeacher, installed: list[str]) -> None:
    named = values(choose_student(teacher(channels=32, head_convs=1), DetectorConfig("gfl", "resnet18")))
    assert named == {"arch": "gfl", "backbone": "resnet18", "fpn_channels": 32, "head_convs": 2, "pretrained": False}
    pooled = values(choose_student(teacher(), DetectorConfig("faster_rcnn", "resnet18")))
    assert "head_convs" not in pooled
    bare = values(choose_student(teacher(), DetectorConfig("ssdlite", "resnet18")))
    assert bare == {"arch": "ssdlite", "backbone": "resnet18", "pretrained": False}


def test_a_student_larger_than_its_teacher_is_remarked_upon(teacher: MakeTeacher, installed: list[str]) -> None:
    keys = choose_student(teacher(parameters=600_000), DetectorConfig("fcos", "resnet18"))
    assert keys["backbone"].why == "as given; it makes the student larger than its teacher"


def test_a_teacher_without_a_head_is_named(teacher: MakeTeacher, installed: list[str]) -> None:
    keys = choose_student(teacher(arch="BackboneTeacher", class_names=()), None)
    assert keys["arch"].value == "fcos"
    assert "no detection head" in keys["arch"].why


def test_a_whole_student_stays_as_it_is(teacher: MakeTeacher) -> None:
    whole = DetectorConfig("fcos", "resnet18", fpn_channels=48, init="runs/former")
    assert values(choose_student(teacher(), whole)) == {
        "arch": "fcos",
        "backbone": "resnet18",
        "fpn_channels": 48,
        "init": "runs/former",
    }
    assert values(choose_student(teacher(), DetectorConfig("hf:folder", pretrained=True))) == {
        "arch": "hf:folder",
        "pretrained": True,
    }


def test_a_teacher_to_train_is_larger_than_the_student(installed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    student = DetectorConfig("retinanet", "tf_efficientnet_lite0", fpn_channels=48, head_convs=3)
    assert values(choose_teacher(student)) == {
        "arch": "retinanet",
        "backbone": "tf_efficientnet_lite2",
        "fpn_channels": 48,
        "head_convs": 3,
        "pretrained": True,
    }
    assert choose_teacher(DetectorConfig("fcos", "resnet18"))["backbone"].value == "resnet50"
    assert choose_teacher(DetectorConfig("hf:folder"))["arch"].value == "fcos"
    monkeypatch.setattr(models, "TEACHER_BACKBONES", ("tf_efficientnet_lite2",))
    with pytest.raises(DfmsdError, match=r"^student: no teacher on .*lite2 is larger than fcos on resnet18; name a"):
        choose_teacher(DetectorConfig("fcos", "resnet18"))


def test_whether_the_student_can_inherit(teacher: MakeTeacher, installed: list[str]) -> None:
    keys = choose_student(teacher(), None)
    assert fits_inheriting(keys, teacher(), ("a", "b"))
    assert fits_inheriting(keys, teacher(), ("B", "a"))
    assert not fits_inheriting(keys, teacher(), ("a", "b", "c"))
    assert not fits_inheriting(keys, teacher(channels=256), ("a", "b"))
    assert not fits_inheriting(keys, teacher(arch="gfl"), ("a", "b"))
