"""Runs whose student starts from the weights of an earlier run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.helpers.command import Command

from dfmsd.detectors import DetectorConfig, load_detector
from dfmsd.distillation.stages import NearConfig
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.configfile import parse_config, read_run_config
from dfmsd.engine.near import near_model
from dfmsd.engine.run import train
from dfmsd.errors import DfmsdError

MakeTrain = Callable[..., TrainConfig]


def test_a_config_gets_the_architecture_that_its_student_starts_from(tiny_teachers: tuple[str, str]) -> None:
    config = parse_config(TrainConfig, {"out": "out", "model": {"init": tiny_teachers[1]}})
    assert (config.model.arch, config.model.fpn_channels) == ("faster_rcnn", 16)
    with pytest.raises(DfmsdError, match=r"model\.init: no detector at 'none'"):
        parse_config(TrainConfig, {"out": "out", "model": {"init": "none"}})


def test_a_run_starts_from_another_and_its_config_outlives_that(
    train_config: MakeTrain, tiny_teachers: tuple[str, str], tmp_path: Path
) -> None:
    first = Path(shutil.copytree(tiny_teachers[0], tmp_path / "first"))
    start = load_detector(first)
    config = parse_config(TrainConfig, {"out": "x", "model": {"init": str(first)}})
    config = replace(train_config(tmp_path / "run", model=config.model), optim=replace(config.optim, lr=1e-12))
    result = train(config)
    before = start.model.head.classification_head.cls_logits.weight
    assert torch.allclose(result.student.model.head.classification_head.cls_logits.weight, before, atol=1e-6)
    shutil.rmtree(first)
    assert read_run_config(tmp_path / "run").student == config.model
    assert load_detector(tmp_path / "run").config == config.model


@pytest.mark.parametrize("stated", [{"arch": "fcos"}, {"backbone": "mobilenetv3_small_050"}])
def test_a_stated_default_that_contradicts_it_is_refused(
    stated: dict[str, str], tiny_teachers: tuple[str, str], tmp_path: Path
) -> None:
    run = {"stages": [{"epochs": 1}], "out": str(tmp_path / "run")}
    with pytest.raises(DfmsdError, match=r"student\.init: .* has .*, the student (arch fcos|backbone mobilenetv3)"):
        parse_config(DistillConfig, {**run, "student": {"init": tiny_teachers[1], **stated}})
    assert parse_config(DistillConfig, {**run, "student": {"init": tiny_teachers[1]}}).student.arch == "faster_rcnn"
    frozen = parse_config(DistillConfig, {**run, "student": {"frozen_stride": 4, "pretrained": True}}).student
    assert frozen == DetectorConfig(frozen_stride=4, pretrained=True)


def test_a_near_teacher_of_such_a_student_starts_from_its_backbone() -> None:
    student = DetectorConfig("fcos", init="runs/x")
    assert near_model(student, NearConfig("resnet18")).init is None


def test_the_command_line_says_what_is_kept(
    dfmsd: Command, tiny_coco: Path, tiny_teachers: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    status, _, _ = dfmsd(
        *("check", "--data.root", tiny_coco, "--data.image_size", 64, "--out", "run", "--data.batch_size", 4),
        *("--student.init", tiny_teachers[0], "--stages", f"[{{teacher: {tiny_teachers[0]}, epochs: 1}}]"),
        "--allow-weak-teacher",
    )
    assert status == 0
    assert f" tensors of {tiny_teachers[0]}" in caplog.text
