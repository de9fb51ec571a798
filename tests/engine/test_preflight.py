from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from dfmsd import losses
from dfmsd.data import CocoDataModule
from dfmsd.detectors import Detector, ModuleDetector, build_detector, save_detector
from dfmsd.distillation.checks import check_augmented_ap, undisturbed
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine import preflight as module
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.pairing import paired_levels
from dfmsd.engine.preflight import Preflight, preflight, print_preflight
from dfmsd.engine.run import build_task, check
from dfmsd.errors import DfmsdError
from dfmsd.losses.functional import pearson
from dfmsd.types import LevelSpec

Make = Callable[..., DistillConfig]


@pytest.fixture
def config(distill_config: Make, tmp_path: Path) -> DistillConfig:
    return distill_config(tmp_path / "run")


@pytest.fixture
def data(config: DistillConfig) -> CocoDataModule:
    return CocoDataModule(config.data)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, task: DistillationTask) -> Callable[..., None]:
    """Fix the APs that the evaluation returns: of the student, and of both teachers."""

    def measure(student: float | None, first: float | None, second: float | None) -> None:
        detectors = [task.student, *(teacher.detector for teacher in task.every_teacher)]
        found = {id(detector): ap for detector, ap in zip(detectors, (student, first, second), strict=True)}

        def evaluate(detector: Detector, *_: Any, **__: Any) -> dict[str, float | None]:
            return {"AP": found[id(detector)]}

        monkeypatch.setattr(module, "evaluate", evaluate)

    return measure


def printed(found: Preflight) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_preflight(found, console)
    return console.export_text()


def test_the_tables_list_levels_pairs_ap_parameters_and_terms(
    task: DistillationTask, data: CocoDataModule, measured: Callable[..., None], tiny_teachers: tuple[str, str]
) -> None:
    measured(0.125, 0.5, 0.25)
    found = preflight(task, data)
    first, second = tiny_teachers
    assert set(found.levels) == {"student", first, second}
    assert found.ap == {"student": 0.125, first: 0.5, second: 0.25}
    assert list(found.pairs) == [f"stage 1: {first}", f"stage 2: {second}"]
    assert "p3 (/8, 16) <- p3 (/8, 32)" in found.pairs[f"stage 1: {first}"]
    assert "p3 (/8, 16) <- p2 (/4, 16)" in found.pairs[f"stage 2: {second}"]
    assert found.parameters == {
        "student": sum(p.numel() for p in task.student.parameters()),
        "layers": sum(p.numel() for p in task.trainable["criteria"].parameters()),
        "teachers": sum(p.numel() for t in task.every_teacher for p in t.detector.parameters()),
    }
    assert {(term.stage, term.name) for term in found.terms} == {
        (stage, name) for stage in (1, 2) for name in ("task", "mask", "sfa")
    }
    text = printed(found)
    assert all(part in text for part in ("12.5", "50.0", "25.0", "stage 1", "p3 (/8, 16) <- p3 (/8, 32)"))
    assert [(row.stage, row.pair.student.name, row.pair.teacher.name) for row in found.pairing] == [
        *((f"stage 1: {first}", name, name) for name in ("p3", "p4", "p5", "p6", "p7")),
        *((f"stage 2: {second}", f"p{level}", f"p{level - 1}") for level in (3, 4, 5, 6, 7)),
    ]
    assert f"student {found.parameters['student']:,}" in text
    row = next(term for term in found.terms if (term.stage, term.name) == (2, "mask"))
    own = next(term for term in found.terms if (term.stage, term.name) == (2, "task"))
    assert f"{row.gradient / own.gradient:.2f}" in text


def test_the_table_of_pairs_lists_sizes_boxes_and_resized_sides() -> None:
    student = [LevelSpec("p3", 4, 8, (0.0, 64.0)), LevelSpec("p4", 4, 16, (64.0, math.inf)), LevelSpec("p5", 4, 32)]
    teacher = [LevelSpec("t2", 4, 4, (0.0, 71.2)), LevelSpec("t4", 4, 16, (71.2, math.inf)), LevelSpec("t5", 4, 32)]
    same = {"name": "pkd", "pairing": "index", "resize": "teacher"}
    criterion = losses.build([same, {"name": "fitnet", "pairing": "index", "resize": "teacher"}], student, teacher)
    rows = paired_levels("stage 1: b", criterion, torch.tensor([10.0, 63.9, 64.0, 500.0]))
    assert [(row.pair.student.name, row.share, row.resized) for row in rows] == [
        ("p3", 0.5, "teacher"),
        ("p4", 0.5, None),
        ("p5", None, None),
    ]
    text = printed(Preflight(pairing=rows))
    assert "stage 1: b" in text
    lines = [line.split() for line in text.splitlines()]
    cells = [" ".join(line).replace("│ ", "").strip("│ ") for line in lines]
    assert "p3 (/8, 4) <- t2 (/4, 4) 0 to 64 0 to 71 50% teacher" in cells
    assert "p4 (/16, 4) <- t4 (/16, 4) from 64 from 71 50% -" in cells
    assert "p5 (/32, 4) <- t5 (/32, 4) - - - -" in cells
    assert [row.share for row in paired_levels("", criterion, torch.zeros(0))] == [None] * 3


def test_the_preflight_does_not_change_the_task(
    task: DistillationTask, data: CocoDataModule, measured: Callable[..., None]
) -> None:
    measured(0.0, 0.5, 0.5)
    before = deepcopy(task.state_dict())
    random = torch.get_rng_state()
    preflight(task, data)
    assert task.stage == 0
    assert_close(dict(task.state_dict()), dict(before), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in task.parameters())


@pytest.mark.parametrize(
    ("aps", "message"),
    [
        ((0.0, 0.5, 0.004), r"faster_rcnn measures AP 0.4 in this pipeline, about 0"),
        ((0.3, 0.2, 0.5), r"fcos measures AP 20.0 in this pipeline, below the student's start \(30.0\)"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused_unless_allowed(
    task: DistillationTask,
    data: CocoDataModule,
    measured: Callable[..., None],
    aps: tuple[float | None, ...],
    message: str,
) -> None:
    measured(*aps)
    with pytest.raises(DfmsdError, match=message) as error:
        preflight(task, data)
    assert "`allow_weak_teacher`" in str(error.value)
    assert len(preflight(task, data, allow_weak_teacher=True).terms) == 6


def test_a_teacher_that_lacks_a_class_teaches_and_the_class_is_named(
    distill_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = distill_config(tmp_path / "run")
    save_detector(build_detector(config.student, ["square", "cat", "dog"]), tmp_path / "foreign")
    stage = [type(config.stages[0])(epochs=1, teacher=str(tmp_path / "foreign"))]
    monkeypatch.setattr(module, "evaluate", lambda *_, **__: {"AP": 0.5})
    found = check(distill_config(tmp_path / "run", stages=stage))
    assert len(found.notes) == 1
    assert "foreign does not know disc of the data's 2 classes" in printed(found)


def test_a_single_pair_of_levels_is_noted(distill_config: Make, tmp_path: Path) -> None:
    """One of a detector with a single level, such as DETR."""
    body = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Conv2d(4, 4, 2, 2))
    teacher = ModuleDetector(body, ("1",), mean=(0.5,) * 3, std=(0.5,) * 3)
    stage = type(distill_config(tmp_path).stages[0])(epochs=1, teacher="single")
    found = check(distill_config(tmp_path / "run", stages=[stage]), teachers={"single": teacher}, check_images=1)
    (line,) = found.notes
    assert line.startswith("stage 1: single: one pair of levels only, p4 (/16, 16) <- p4 (/16, 4): ")
    assert line in printed(found)
    assert {term.name for term in found.terms} == {"task", "mask", "sfa"}


def test_a_teacher_without_any_common_class_is_refused_by_name_unless_allowed(
    distill_config: Make, tmp_path: Path
) -> None:
    config = distill_config(tmp_path / "run")
    save_detector(build_detector(config.student, ["cat"]), tmp_path / "cats")
    config = distill_config(tmp_path / "run", stages=[type(config.stages[0])(epochs=1, teacher=str(tmp_path / "cats"))])
    with pytest.raises(DfmsdError, match=r"cats knows none of the data's classes square, disc; it knows cat;"):
        check(config)


def test_the_ap_of_a_teacher_without_any_common_class_is_unknown(distill_config: Make, tmp_path: Path) -> None:
    config = distill_config(tmp_path / "run")
    save_detector(build_detector(config.student, ["cat"]), tmp_path / "cats")
    config = distill_config(tmp_path / "run", stages=[type(config.stages[0])(epochs=1, teacher=str(tmp_path / "cats"))])
    found = check(config, allow_weak_teacher=True, check_images=1)
    assert found.ap[str(tmp_path / "cats")] is None
    assert "unknown" in printed(found)
    assert len(found.terms) == 3  # it teaches all the same


def test_a_term_of_exactly_zero_is_refused(
    task: DistillationTask, data: CocoDataModule, measured: Callable[..., None]
) -> None:
    measured(0.0, 0.5, 0.5)
    task.enter_stage(1)
    task.lessons[0].criterion.weight = 0.0
    with pytest.raises(
        DfmsdError, match=r"stage 2: mask/p3 is exactly 0 on the first batch, so it would teach nothing"
    ):
        preflight(task, data)


def test_check_measures_and_writes_nothing(config: DistillConfig, tmp_path: Path, tiny_root: Path) -> None:
    before = sorted(tmp_path.rglob("*")), sorted(tiny_root.rglob("*"))
    found = check(config, allow_weak_teacher=True)
    assert set(found.ap) == set(found.levels)
    assert (sorted(tmp_path.rglob("*")), sorted(tiny_root.rglob("*"))) == before


def test_a_teacher_without_a_head_is_measured_by_its_correlation(
    distill_config: Make, tmp_path: Path, tiny_teachers: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place of an AP, and it is not refused for having none."""
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.safetensors")
    name = f"timm:test_resnet?weights={tmp_path}/weights.safetensors"
    stage = [type(distill_config(tmp_path).stages[0])(epochs=1, teacher=[name, tiny_teachers[0]])]
    config = distill_config(tmp_path / "run", stages=stage, loss={"name": "pkd"})
    task = build_task(config, ("square", "disc"))
    measure, batches = module.term_scales, []
    monkeypatch.setattr(module, "evaluate", lambda *_, **__: {"AP": 0.5})
    monkeypatch.setattr(module, "term_scales", lambda task, batch: batches.append(batch) or measure(task, batch))
    found = preflight(task, CocoDataModule(config.data))
    assert found.ap == {"student": 0.5, name: None, tiny_teachers[0]: 0.5}
    assert found.pearson.keys() == {name}
    with undisturbed(task), torch.no_grad():
        pyramid, _ = task.student(batches[0].images, batches[0].targets)
        taught = task.lessons[0].teacher.features(batches[0].images)
        criterion = task.lessons[0].criterion
        correlations = []
        for pair, align in zip(criterion.pairs, criterion.align, strict=True):
            correlations.append(pearson(*align(pyramid[pair.student.name], taught[pair.teacher.name])))
    assert found.pearson[name] == pytest.approx(float(torch.stack(correlations).mean()), abs=1e-5)
    assert f"no head; pearson {found.pearson[name]:.3f}" in printed(found)


def test_teachers_are_measured_on_images_augmented_as_in_training(
    task: DistillationTask, config: DistillConfig, measured: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(0.0, 0.5, 0.25)
    first, second = (teacher.name for teacher in task.every_teacher)
    assert preflight(task, CocoDataModule(config.data)).augmented == {}
    detectors = {id(teacher.detector): ap for teacher, ap in zip(task.every_teacher, (0.3, 0.2), strict=True)}
    monkeypatch.setattr(module, "augmented_ap", lambda detector, *_: detectors[id(detector)])
    found = preflight(task, CocoDataModule(replace(config.data, augment="strong")))
    assert found.augmented == {first: 0.3, second: 0.2}
    lines = [note for note in found.notes if "augmented" in note]
    assert len(lines) == 1
    assert lines[0].startswith(f"teacher {first} has an AP of 50.0 in plain images, but 30.0 in")
    assert "AP, augmented" in printed(found)
    assert "30.0" in printed(found)


@pytest.mark.parametrize(("plain", "augmented"), [(0.5, 0.4), (0.5, 0.6), (None, 0.1), (0.5, None)])
def test_teachers_that_see_augmented_images_well_are_not_remarked_upon(
    plain: float | None, augmented: float | None
) -> None:
    assert check_augmented_ap("a", plain, augmented) == []
