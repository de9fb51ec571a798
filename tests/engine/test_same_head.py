"""Runs with inheriting and with CrossKD, which need a teacher with the student's kind of head."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.fixtures import STUDENT
from torch import Tensor

from dfmsd.detectors import DetectorConfig, build_detector, load_detector, save_detector
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.configfile import build_config, config_parser, read_config
from dfmsd.engine.run import build_task, distill
from dfmsd.errors import DfmsdError

MakeDistill = Callable[..., DistillConfig]
CLASSES = ("square", "disc")


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a detector like the student, with weights of its own."""
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("twin")
    save_detector(build_detector(STUDENT, list(CLASSES)), folder)
    return str(folder)


def test_a_run_with_crosskd_inherits_and_delivers_the_student(
    distill_config: MakeDistill, twin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = distill_config(
        tmp_path / "run",
        stages=[StageConfig(1, twin)],
        loss=[{"name": "pkd"}, {"name": "crosskd", "regression": 0.5}],
        inherit=True,
        teacher_cache="ram",
    )
    result = distill(config, allow_weak_teacher=True, check_images=1)
    assert f"student starts with backbone.fpn.layer_blocks, backbone.fpn.extra_blocks, head of {twin}" in " ".join(
        capsys.readouterr().err.split()
    )
    assert read_config(DistillConfig, result.run / "config.yaml").inherit is True
    with (result.run / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert {f"{term}/p{level}" for term in ("pkd", "cross_cls", "cross_reg") for level in range(3, 8)} <= set(rows[0])
    assert all(float(row["cross_reg/p3"]) > 0 for row in rows)
    found = load_detector(result.run)
    own = result.student.state_dict()
    assert {name: bool(torch.equal(value, own[name])) for name, value in found.state_dict().items()} == dict.fromkeys(
        own, True
    )


def test_inheriting_alone_is_a_run_without_teachers(distill_config: MakeDistill, twin: str, tmp_path: Path) -> None:
    config = distill_config(tmp_path / "run", stages=[StageConfig(1)], inherit=twin)
    task, plain = (
        build_task(each, CLASSES) for each in (config, distill_config(tmp_path / "plain", stages=[StageConfig(1)]))
    )
    assert task.teachers == ((),)
    theirs, ours, start = (detector.state_dict() for detector in (load_detector(twin), task.student, plain.student))
    taken = {name for name, value in ours.items() if not torch.equal(value, start[name])}
    assert {name.split(".")[1] for name in taken} == {"head", "backbone"}
    assert all(torch.equal(ours[name], theirs[name]) for name in taken)
    assert not any(name.startswith("model.backbone.body.") for name in taken)  # the seed's own, as in the other run
    result = distill(config)
    assert not any(name.startswith("mask") for name in (result.run / "log.csv").read_text().split("\n")[0].split(","))


def test_the_baseline_does_not_inherit(distill_config: MakeDistill, twin: str, tmp_path: Path) -> None:
    config = distill_config(tmp_path, stages=[StageConfig(1, twin)], inherit=True)
    assert config.ancestor == twin
    baseline = config.without_teachers()
    assert baseline.inherit is False
    assert baseline.ancestor is None
    assert distill_config(tmp_path).ancestor is None


def test_the_student_inherits_from_the_first_stages_teacher(
    distill_config: MakeDistill, twin: str, tiny_teachers: tuple[str, str], tmp_path: Path
) -> None:
    later = [StageConfig(1, twin), StageConfig(1, tiny_teachers[1])]
    assert distill_config(tmp_path, stages=later, inherit=True).ancestor == twin
    assert distill_config(tmp_path, stages=later[::-1], inherit=True).ancestor == tiny_teachers[1]
    together = [StageConfig(1, [twin, tiny_teachers[1]]), StageConfig(1, tiny_teachers[0])]
    assert distill_config(tmp_path, stages=together, inherit=True).ancestor == twin
    with pytest.raises(DfmsdError, match=r"inherit: the first stage has no teacher .*name one"):
        distill_config(tmp_path, stages=[StageConfig(1), *later], inherit=True)
    assert distill_config(tmp_path, stages=[StageConfig(1), *later], inherit=twin).ancestor == twin


@pytest.mark.parametrize(
    ("flag", "value"), [("true", True), ("false", False), ("auto", "auto"), ("runs/teacher", "runs/teacher")]
)
def test_inherit_is_a_boolean_or_a_reference(flag: str, value: bool | str) -> None:
    parser = config_parser(DistillConfig)
    stages = '[{"epochs": 1, "teacher": "x"}]'
    values = parser.instantiate(parser.parse_args(["--out", "run", "--stages", stages, "--inherit", flag]))
    assert build_config(DistillConfig, values).inherit == value


def test_auto_inherits_from_what_fits_and_says_so(
    distill_config: MakeDistill,
    twin: str,
    tiny_teachers: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def built(**values: Any) -> tuple[dict[str, Tensor], str]:
        state = build_task(distill_config(tmp_path, **values), CLASSES).student.state_dict()
        return state, " ".join(capsys.readouterr().err.split())

    plain, said = built()
    assert "student" not in said
    named, _ = built(stages=[StageConfig(1, twin)], inherit=True)
    found, said = built(stages=[StageConfig(1, [tiny_teachers[1], twin])], inherit="auto")
    assert f"head of {twin}" in said
    assert all(torch.equal(value, named[name]) for name, value in found.items())
    none, said = built(stages=[StageConfig(1, tiny_teachers[1]), StageConfig(1, twin)], inherit="auto")
    assert "student inherits nothing: arch differ: fcos (student), faster_rcnn" in said
    assert all(torch.equal(value, plain[name]) for name, value in none.items())
    student = DetectorConfig(init=twin)
    _, said = built(stages=[StageConfig(1, twin)], inherit="auto", student=student)
    assert f"student inherits nothing: it starts from {twin}" in said
    assert distill_config(tmp_path, inherit="auto").without_teachers().inherit is False


def test_detectors_that_do_not_match_are_refused_before_a_folder_is_created(
    distill_config: MakeDistill, tiny_teachers: tuple[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for options, message in (
        ({"inherit": True}, r"inherit: the heads of the student and of .* differ in \d+ shape"),  # 32 channels
        ({"loss": {"name": "crosskd"}}, r"crosskd needs two heads of one kind, but their channels differ: 16 .* 32"),
    ):
        with pytest.raises(DfmsdError, match=message):
            distill(distill_config(run, stages=[StageConfig(1, tiny_teachers[0])], **options))
        assert not run.exists()
    two_stage = distill_config(run, stages=[StageConfig(1, tiny_teachers[1])], inherit=True)
    with pytest.raises(DfmsdError, match=r"inherit: arch differ: fcos \(student\), faster_rcnn \("):
        distill(two_stage)


def test_a_student_can_inherit_from_a_passed_detector(distill_config: MakeDistill, tmp_path: Path) -> None:
    given = build_detector(DetectorConfig(**vars(STUDENT)), CLASSES)
    config = distill_config(tmp_path, stages=[StageConfig(1, "python:teacher1")], inherit=True)
    task = build_task(config, CLASSES, teachers={"python:teacher1": given})
    weight = "model.head.classification_head.cls_logits.weight"
    assert torch.equal(task.student.state_dict()[weight], given.state_dict()[weight])
