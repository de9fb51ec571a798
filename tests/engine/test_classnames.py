"""Runs whose teacher names the data's classes otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.fixtures import STUDENT

from dfmsd.detectors import build_detector, load_detector, save_detector
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.run import build_task, check
from dfmsd.errors import DfmsdError

MakeDistill = Callable[..., DistillConfig]
CLASSES = ("square", "disc")
NAMES = {"box": "square", "round": "disc"}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of an untrained teacher like the student, with other names."""
    folder = tmp_path_factory.mktemp("teachers") / "foreign"
    save_detector(build_detector(STUDENT, list(NAMES)), folder)
    return str(folder)


@pytest.fixture
def make(distill_config: MakeDistill, foreign: str, tmp_path: Path) -> MakeDistill:
    def build(**values: Any) -> DistillConfig:
        stages = [StageConfig(1, foreign)]
        return distill_config(tmp_path / "run", **{"stages": stages, "teacher_classes": NAMES, **values})

    return build


def test_its_ap_covers_the_renamed_classes(make: MakeDistill, foreign: str) -> None:
    findings = check(make(), allow_weak_teacher=True, check_images=1)
    assert findings.ap[foreign] is not None
    with pytest.raises(DfmsdError, match=r"knows none of the data's classes square, disc; it knows box, round"):
        check(make(teacher_classes=None), check_images=1)


def test_the_names_may_be_given_with_the_teacher_in_python(make: MakeDistill, foreign: str) -> None:
    detector = load_detector(foreign)
    findings = check(make(), allow_weak_teacher=True, check_images=1, teachers={foreign: detector})
    assert findings.ap[foreign] is not None
    assert detector.class_names == tuple(NAMES)


@pytest.mark.parametrize("values", [{"inherit": True}, {"loss": "crosskd"}])
def test_heads_are_the_same_if_the_renamed_classes_are(make: MakeDistill, values: dict[str, Any]) -> None:
    build_task(make(**values), CLASSES)
    with pytest.raises(DfmsdError, match="classes differ"):
        build_task(make(**values, teacher_classes=None), CLASSES)


def test_a_student_that_starts_from_it_keeps_its_rows(
    make: MakeDistill, foreign: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = make(student=replace(STUDENT, init=foreign))
    with caplog.at_level("INFO", logger="dfmsd"):
        build_task(config, CLASSES)
        build_task(config.without_teachers(), CLASSES)
    lines = [record.message for record in caplog.records if "kept" in record.message]
    assert len(lines) == 2
    assert all("new" not in line for line in lines)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"box": "cube"}, "^teacher_classes: the data have no class 'cube'; they have square, disc"),
        ({"bux": "square"}, "^teacher_classes: no teacher has a class 'bux'; their classes are box, round"),
    ],
)
def test_unknown_names_are_refused_in_one_line(make: MakeDistill, names: dict[str, str], message: str) -> None:
    with pytest.raises(DfmsdError, match=message) as caught:
        check(make(teacher_classes=names), allow_weak_teacher=True)
    assert "\n" not in str(caught.value)
