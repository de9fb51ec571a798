"""Teachers that see more pixels than the student."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dfmsd.data import DataConfig
from dfmsd.detectors import load_detector
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.build import read_data
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.run import build_task, check, distill
from dfmsd.engine.saved_config import same_run
from dfmsd.engine.teachercache import plan_caches
from dfmsd.errors import DfmsdError
from dfmsd.estimation.estimator import first_batch
from dfmsd.estimation.flops import count_stage
from dfmsd.reporting.writer import report
from dfmsd.types import LevelSpec

MakeDistill = Callable[..., DistillConfig]
CLASSES = ("square", "disc")


def seen_by(detector: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list of the sides of the images that a detector is shown from now on."""
    sides: list[int] = []
    features, detect = detector.features, detector.detect

    def watched(images: Tensor) -> Any:
        sides.append(images.shape[-1])
        return features(images)

    def watched_detect(images: Tensor, sizes: Any) -> Any:
        sides.append(images.shape[-1])
        return detect(images, sizes)

    monkeypatch.setattr(detector, "features", watched)
    monkeypatch.setattr(detector, "detect", watched_detect)
    return sides


def test_a_level_of_a_larger_image_in_pixels_of_the_smaller_one() -> None:
    assert LevelSpec("p3", 64, 8, (0.0, 64.0)).seen_at(2.0) == LevelSpec("p3", 64, 4, (0.0, 32.0))
    assert LevelSpec("p4", 64, 16).seen_at(1.5).stride == pytest.approx(16 / 1.5)


def test_levels_are_paired_by_the_size_of_objects_in_the_student_s_pixels(
    distill_config: MakeDistill, tiny_teachers: tuple[str, str], tmp_path: Path
) -> None:
    def pairs(**values: Any) -> list[tuple[str, str]]:
        config = distill_config(tmp_path, stages=[StageConfig(1, tiny_teachers[0])], **values)
        (lesson,) = build_task(config, CLASSES).lessons
        return [(pair.student.name, pair.teacher.name) for pair in lesson.criterion.pairs]

    assert pairs() == [(level, level) for level in ("p3", "p4", "p5", "p6", "p7")]
    # p3 of both has the smallest objects; from p4 on, a teacher's object has twice the size
    assert pairs(teacher_size=128) == [("p3", "p3"), ("p4", "p5"), ("p5", "p6"), ("p6", "p7")]


@pytest.mark.parametrize("cache", [None, "ram"])
def test_the_teachers_alone_see_larger_images(
    cache: str | None,
    distill_config: MakeDistill,
    tiny_teachers: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teachers = {name: load_detector(name) for name in tiny_teachers}
    sides = {name: seen_by(teacher, monkeypatch) for name, teacher in teachers.items()}
    config = distill_config(tmp_path / "run", teacher_size=96, teacher_cache=cache, balance=0.5)
    result = distill(config, teachers=teachers, allow_weak_teacher=True)
    assert set(sides[tiny_teachers[0]]) == {96}
    assert set(sides[tiny_teachers[1]]) == {96}
    assert result.student.image_size == 64
    assert same_run(config, tmp_path / "run")
    assert not same_run(replace(config, teacher_size=None), tmp_path / "run")
    assert "Masks and attention" in report(tmp_path / "run", images=2).read_text()


def test_the_rest_of_a_run_is_told_and_counted(
    distill_config: MakeDistill, tiny_teachers: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [StageConfig(1, tiny_teachers[0])]
    plain = distill_config(tmp_path, stages=stages, teacher_cache="ram")
    larger = replace(plain, teacher_size=128)
    assert "images of 128 pixels" in " ".join(check(larger, allow_weak_teacher=True).notes)
    assert "the teachers see images of 128 pixels" in " ".join(capsys.readouterr().err.split())
    costs, bytes_per_image = [], []
    for config in (plain, larger):
        data, task = read_data(config), build_task(config, CLASSES)
        costs.append(count_stage(task.train(), first_batch(data)))
        plan = plan_caches(task, config, len(data.train))
        assert plan is not None
        bytes_per_image += [layout.nbytes / len(layout.levels) for layout in plan.layouts.values()]
    assert costs[0].student.forward == costs[1].student.forward
    assert costs[0].teacher is not None
    assert costs[1].teacher is not None
    assert costs[1].teacher.forward == pytest.approx(4 * costs[0].teacher.forward, rel=0.1)
    assert larger.without_teachers().teacher_size is None


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"teacher_size": 100}, "teacher_size must be a multiple of 32"),
    ({"teacher_size": 64}, "teacher_size: 64 is not above data.image_size, 64"),
    ({"stages": [StageConfig(1)]}, "teacher_size: no stage has a teacher; leave it out"),
    ({"data": DataConfig("x", image_size=64, pad="batch")}, "set data.pad to square, or leave out teacher_size"),
    ({"data": DataConfig("x", image_size=64, iou_crop=0.5)}, "data.iou_crop chooses crops by overlaps"),
    ({"data": DataConfig("x", image_size=64, multi_scale=(0.5, 1.5))}, "data.multi_scale changes the ratio"),
    ({"stages": [StageConfig(4, "x", near="auto")]}, "a near teacher is trained at the student's size"),
    ({"loss": "crosskd"}, "crosskd compares predictions cell by cell; choose a loss on features"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_contradictions_are_refused(
    values: dict[str, Any], message: str, distill_config: MakeDistill, tmp_path: Path
) -> None:
    with pytest.raises(DfmsdError, match=message):
        distill_config(tmp_path, **{"teacher_size": 96, **values})


def test_a_student_learns_the_same_from_a_teacher_that_sees_the_same_pixels_twice_as_large(
    distill_config: MakeDistill, tiny_teachers: tuple[str, str], tmp_path: Path
) -> None:
    """The features that are compared are those of the larger image."""
    config = distill_config(tmp_path, stages=[StageConfig(1, tiny_teachers[0])], teacher_size=128, loss="pkd")
    task = build_task(config, CLASSES).eval()
    batch = first_batch(read_data(config))
    torch.manual_seed(0)
    terms = task(batch.images, batch.targets, larger=batch.larger)
    torch.manual_seed(0)
    again = task(batch.images, batch.targets, larger=torch.rand_like(batch.for_teachers))
    of_task = [name for name in terms if name.startswith("task/")]
    assert all(torch.equal(terms[name], again[name]) for name in of_task)
    assert all(not torch.equal(terms[name], again[name]) for name in terms.keys() - set(of_task))
