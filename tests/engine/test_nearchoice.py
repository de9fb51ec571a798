"""Which stages get a near teacher, on which backbone, and what is said about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.fixtures import STUDENT

from dfmsd.detectors import DetectorConfig, build_detector
from dfmsd.detectors.weights import PIP_WEIGHTS
from dfmsd.distillation.stages import NearConfig, StageConfig
from dfmsd.engine import nearchoice
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.near import expand
from dfmsd.engine.nearchoice import BACKBONES, choose_backbone, describe, parameters, settle
from dfmsd.engine.saved_config import to_yaml
from dfmsd.errors import DfmsdError

MakeDistill = Callable[..., DistillConfig]
SMALL = DetectorConfig("fcos", "mobilenetv3_small_050", fpn_channels=64, head_convs=2)


@pytest.mark.parametrize("arch", ["fcos", "retinanet", "gfl", "faster_rcnn", "ssdlite"])
def test_parameters_are_those_of_the_detector(arch: str) -> None:
    model = replace(STUDENT, arch=arch)
    assert parameters(model, 2) == sum(p.numel() for p in build_detector(model, ["a", "b"]).parameters())


@pytest.mark.parametrize(
    ("teacher", "backbone"),
    [(1, "b3"), (4, "b3"), (8, "b3"), (25, "b10"), (100, "b10"), (300, "b30"), (10**6, "b30")],  # of sqrt(2 * teacher)
)
def test_the_backbone_is_nearest_to_the_geometric_mean(
    teacher: int, backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearchoice, "BACKBONES", ("b1", "b3", "b10", "b30"))
    monkeypatch.setattr(nearchoice, "parameters", lambda model: int(model.backbone[1:]))
    assert choose_backbone(replace(SMALL, backbone="b2"), teacher) == backbone
    with pytest.raises(DfmsdError, match=r"none of b1, .*, b30 makes the student bigger; name one as near\.backbone"):
        choose_backbone(replace(SMALL, backbone="b30"), teacher)


@pytest.mark.slow
def test_backbones_are_in_the_order_of_their_sizes() -> None:
    sizes = [parameters(replace(SMALL, backbone=name)) for name in BACKBONES]
    assert sizes == sorted(sizes)
    assert set(PIP_WEIGHTS) <= set(BACKBONES)


def test_a_teacher_of_the_digits_comparison_gets_the_near_one_that_was_measured() -> None:
    strong = DetectorConfig("faster_rcnn", "tf_efficientnet_lite2", fpn_channels=64)
    assert choose_backbone(SMALL, parameters(strong)) == "tf_efficientnet_lite0"


def choice(make: MakeDistill, out: Path, stage: StageConfig, **values: Any) -> DistillConfig:
    return make(out, stages=[stage], student=SMALL, **values)


def test_what_a_config_leaves_open_is_chosen(
    distill_config: MakeDistill, tiny_teachers: tuple[str, str], tmp_path: Path
) -> None:
    near = NearConfig(pretrained=False)
    config = choice(distill_config, tmp_path / "run", StageConfig(9, tiny_teachers[1], near=near))
    generator = torch.random.get_rng_state()
    settled, notes = settle(config)
    assert torch.equal(torch.random.get_rng_state(), generator)
    found = settled.stages[0].near
    assert isinstance(found, NearConfig)
    assert found.backbone == choose_backbone(SMALL, 1)  # the tiny teacher is smaller than the student
    assert (found.epochs, found.share, notes) == (5, 1 / 3, [])
    assert Path(str(found.out)).parent == tmp_path
    assert settle(settled) == (settled, [])


def test_what_a_config_states_is_kept(distill_config: MakeDistill, tmp_path: Path) -> None:
    near = NearConfig(backbone="resnet18", pretrained=False, epochs=7, out="elsewhere")
    config = choice(distill_config, tmp_path / "run", StageConfig(9, "not/read", near=near))
    assert settle(config).config == config


def test_a_teacher_that_does_not_exist_yet_counts_as_described(distill_config: MakeDistill, tmp_path: Path) -> None:
    recipe = TrainConfig(out=str(tmp_path / "teacher"), model=DetectorConfig("faster_rcnn", "resnet50"))
    (tmp_path / "teacher.yaml").write_text(to_yaml(recipe))
    stage = StageConfig(9, str(tmp_path / "teacher.yaml"), near=NearConfig(pretrained=False))
    (found,) = settle(choice(distill_config, tmp_path / "run", stage)).config.stages
    assert isinstance(found.near, NearConfig)
    assert found.near.backbone == choose_backbone(SMALL, parameters(recipe.model))


def test_missing_weights_are_refused_before_work_starts(
    distill_config: MakeDistill, tiny_teachers: tuple[str, str], tmp_path: Path
) -> None:
    stage = StageConfig(9, tiny_teachers[1], near=NearConfig(backbone="resnet18", pretrained="no.pth"))
    config = choice(distill_config, tmp_path / "run", stage)
    with pytest.raises(DfmsdError, match=r"stages\.0\.near: weights file no\.pth does not exist.*pretrained: false"):
        settle(config)
    settle(config, weights=False)  # an estimate needs none


@pytest.fixture
def _any_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearchoice, "BACKBONES", ("tf_efficientnet_lite0",))
    monkeypatch.setattr(nearchoice, "build_detector", lambda *_: None)


def big_teacher(tmp_path: Path, arch: str = "faster_rcnn") -> str:
    recipe = TrainConfig(out=str(tmp_path / arch), model=DetectorConfig(arch, "resnet18"))
    (tmp_path / f"{arch}.yaml").write_text(to_yaml(recipe))
    return str(tmp_path / f"{arch}.yaml")


@pytest.mark.usefixtures("_any_weights")
def test_auto_makes_one_for_a_bigger_teacher_of_another_architecture(
    distill_config: MakeDistill, tmp_path: Path
) -> None:
    config = choice(distill_config, tmp_path / "run", StageConfig(9, big_teacher(tmp_path), near="auto"))
    settled, notes = settle(config)
    (stage,) = settled.stages
    assert isinstance(stage.near, NearConfig)
    assert (stage.near.backbone, stage.near.epochs, notes) == ("tf_efficientnet_lite0", 5, [])


@pytest.mark.usefixtures("_any_weights")
def test_auto_says_why_there_is_none(
    distill_config: MakeDistill, tiny_teachers: tuple[str, str], tmp_path: Path
) -> None:
    big, like = big_teacher(tmp_path), big_teacher(tmp_path, "fcos")
    detr = {"student": DetectorConfig("hf:some/detr")}
    cases: list[tuple[StageConfig, dict[str, Any], str]] = [
        (StageConfig(9, like, near="auto"), {}, "its architecture is the student's, fcos"),
        (StageConfig(9, tiny_teachers[1], near="auto"), {}, "it is no bigger than the student"),
        (StageConfig(1, big, near="auto"), {}, "leaves none for the near teacher"),
        (StageConfig(9, [big, like], near="auto"), {}, "the stage has 2 teachers"),
        (StageConfig(9, big, near="auto"), detr, "hf:some/detr brings its own backbone"),
        (StageConfig(9, big, near="auto"), {"loss": "crosskd"}, "crosskd compares predictions"),
        (StageConfig(9, big, near="auto"), {"student": replace(SMALL, backbone="resnet10t")}, "the student bigger"),
    ]
    for stage, values, reason in cases:
        config = distill_config(tmp_path / "run", **{"student": SMALL, **values, "stages": [stage]})
        settled, (note,) = settle(config)
        assert settled.stages == [replace(stage, near=False)]
        assert note.startswith(f"stage 1: no near teacher for {' and '.join(stage.teachers)}: ")
        assert reason in note


@pytest.mark.usefixtures("_any_weights")
def test_auto_is_for_the_first_teacher_only(distill_config: MakeDistill, tmp_path: Path) -> None:
    first, second = big_teacher(tmp_path), big_teacher(tmp_path, "retinanet")
    stages = [StageConfig(1, near="auto"), StageConfig(9, first, near="auto"), StageConfig(9, second, near="auto")]
    config, (note,) = settle(distill_config(tmp_path / "run", student=SMALL, stages=stages))
    assert [isinstance(stage.near, NearConfig) for stage in config.stages] == [False, True, False]
    assert note == f"stage 3: no near teacher for {second}: only the first teacher of a run gets a near one"


def test_auto_does_without_where_weights_are_missing(
    distill_config: MakeDistill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise DfmsdError("ImageNet weights are unavailable")

    monkeypatch.setattr(nearchoice, "build_detector", missing)
    config = choice(distill_config, tmp_path / "run", StageConfig(9, big_teacher(tmp_path), near="auto"))
    settled, (note,) = settle(config)
    assert settled.stages[0].near is False
    assert "ImageNet weights are unavailable" in note


def test_the_plan_says_what_is_made_and_what_it_costs(distill_config: MakeDistill, tmp_path: Path) -> None:
    near = NearConfig(backbone="resnet18", pretrained=False, epochs=5, out=str(tmp_path / "near"))
    config = choice(distill_config, tmp_path / "run", StageConfig(9, "runs/frcnn", near=near))
    size = parameters(replace(SMALL, backbone="resnet18"), 2)
    (line,) = describe(config, expand(config).recipes, ("square", "disc"), 600)
    assert line == (
        f"stage 1: a near teacher, fcos on resnet18 with {size:,} parameters, is trained on the labels alone for 5 "
        f"epochs of 600 images first, into {near.out}; it teaches 3 epochs, then runs/frcnn 6 in its channels"
    )
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "metrics.json").write_text("{}")
    bridge = replace(config, stages=[replace(config.stages[0], near=replace(near, bridge=True))])
    (line,) = describe(bridge, expand(bridge).recipes, ("square", "disc"), 600)
    assert f"was distilled from runs/frcnn for 5 epochs and is used again, from {near.out}" in line
