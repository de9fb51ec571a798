"""A stage with a near teacher as two ordinary ones, and the config of that teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dfmsd.data import DataConfig
from dfmsd.detectors import DetectorConfig
from dfmsd.distillation.stages import NearConfig, StageConfig
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.configfile import read_run_config
from dfmsd.engine.near import expand, near_folder
from dfmsd.engine.optim import OptimConfig
from dfmsd.engine.saved_config import as_started, same_run, write_config
from dfmsd.errors import DfmsdError

NEAR = NearConfig(backbone="resnet18", epochs=5, out="runs/near")
STUDENT = DetectorConfig("gfl", "mobilenetv3_small_050", 48, 2, pretrained="weights.pth", frozen_stride=4)
Change = Callable[[DistillConfig], DistillConfig]


def config_of(near: Any = NEAR, **values: Any) -> DistillConfig:
    defaults: dict[str, Any] = {
        "out": "runs/student",
        "student": STUDENT,
        "stages": [StageConfig(9, "runs/frcnn", near=near), StageConfig(2)],
        "optim": OptimConfig(lr=2e-3),
        "seed": 3,
    }
    return DistillConfig(**{**defaults, **values})


def test_a_near_teacher_teaches_first_and_lends_its_basis() -> None:
    config, recipes = expand(config_of(loss={"name": "pkd"}))
    assert config.stages == [
        StageConfig(3, "runs/near"),
        StageConfig(6, "runs/frcnn"),
        StageConfig(2),
    ]
    assert list(recipes) == ["runs/near"]
    assert config == config_of(loss={"name": "pkd"}, stages=config.stages)


def test_a_near_teacher_is_the_student_on_another_backbone() -> None:
    (recipe,) = expand(config_of(data=DataConfig(unlabeled="more"))).recipes.values()
    assert recipe == TrainConfig(
        out="runs/near",
        model=replace(STUDENT, backbone="resnet18", pretrained=True),
        epochs=5,
        optim=OptimConfig(lr=2e-3),
        data=DataConfig(),
    )


def test_layers_that_are_not_pretrained_are_not_frozen() -> None:
    (recipe,) = expand(config_of(replace(NEAR, pretrained=False))).recipes.values()
    assert recipe.as_distillation().student.frozen_stride == 0


def test_a_bridge_is_distilled_from_the_stage_s_teacher() -> None:
    config = config_of(replace(NEAR, bridge=True), data=DataConfig(unlabeled="more"), balance=40, inherit=True)
    (recipe,) = expand(config).recipes.values()
    assert isinstance(recipe, DistillConfig)
    assert recipe.stages == [StageConfig(5, "runs/frcnn")]
    assert (recipe.balance, recipe.inherit, recipe.seed, recipe.data.unlabeled) == (40, False, 0, "more")
    assert recipe.student.backbone == "resnet18"


def test_inherit_takes_the_near_teacher_of_the_first_stage() -> None:
    assert expand(config_of(inherit=True)).config.ancestor == "runs/near"


@pytest.mark.parametrize(
    ("loss", "near_loss"),
    [
        ({"name": "pkd", "pairing": {"p3": "p2"}, "weight": 2.0}, {"name": "pkd", "pairing": "stride", "weight": 2.0}),
        (
            [{"name": "pkd", "pairing": {"p3": "p2"}}, {"name": "cwd", "pairing": "auto"}],
            [{"name": "pkd", "pairing": "stride"}, {"name": "cwd", "pairing": "auto"}],
        ),
        ({"name": "pkd", "pairing": "index"}, {}),
    ],
)
def test_level_names_of_the_stage_s_teacher_are_not_asked_of_the_near_one(loss: Any, near_loss: Any) -> None:
    first, second, _ = expand(config_of(loss=loss)).config.stages
    assert first.loss == near_loss
    assert second.loss == {}


def test_a_config_without_near_teachers_stays_as_it_is() -> None:
    config = config_of(False)
    assert expand(config) == (config, {})


@pytest.mark.parametrize("near", ["auto", True, replace(NEAR, out=None)])
def test_what_a_run_has_yet_to_choose_cannot_be_expanded(near: Any) -> None:
    with pytest.raises(DfmsdError, match=r"stages\.0\.near: .*out missing, which a run writes into its config\.yaml"):
        expand(config_of(near))


def test_the_baseline_has_the_same_stages_without_teachers() -> None:
    config = config_of()
    expected = [StageConfig(3), StageConfig(6), StageConfig(2)]
    assert config.without_teachers().stages == expand(config).config.without_teachers().stages == expected


def folder(config: DistillConfig) -> str:
    return near_folder(config, config.stages[0])


def test_the_folder_lies_next_to_the_student_s_and_names_the_detector() -> None:
    assert Path(folder(config_of())).parent == Path("runs")
    assert Path(folder(config_of())).name.startswith("near-gfl-resnet18-")


@pytest.mark.parametrize(
    "change",
    [
        lambda config: replace(config, seed=7),
        lambda config: replace(config, out="runs/other"),
        lambda config: replace(config, loss={"name": "cwd"}),
        lambda config: replace(config, balance=40.0),
        lambda config: replace(config, checkpoint_every=10, logger="mlflow"),
        lambda config: replace(config, stages=[replace(config.stages[0], teacher="runs/other")]),
        lambda config: replace(config, stages=[replace(config.stages[0], near=replace(NEAR, share=0.5))]),
    ],
)
def test_runs_share_a_near_teacher_that_would_not_differ(change: Change) -> None:
    assert folder(change(config_of())) == folder(config_of())


@pytest.mark.parametrize(
    "change",
    [
        lambda config: replace(config, optim=OptimConfig(lr=1e-3)),
        lambda config: replace(config, data=DataConfig(image_size=128)),
        lambda config: replace(config, student=replace(STUDENT, head_convs=3)),
        lambda config: replace(config, stages=[replace(config.stages[0], near=replace(NEAR, epochs=6))]),
        lambda config: replace(config, stages=[replace(config.stages[0], near=replace(NEAR, bridge=True))]),
        lambda config: replace(config, stages=[replace(config.stages[0], near=replace(NEAR, pretrained=False))]),
    ],
)
def test_another_near_teacher_has_another_folder(change: Change) -> None:
    assert folder(change(config_of())) != folder(config_of())


def test_a_bridge_belongs_to_its_teacher_s_weights(tmp_path: Path) -> None:
    weights = tmp_path / "student.safetensors"
    config = config_of(stages=[StageConfig(9, str(tmp_path), near=replace(NEAR, bridge=True))])
    folders = []
    for content in (b"first", b"second", b"first"):
        weights.write_bytes(content)
        folders.append(folder(config))
    assert folders[0] == folders[2] != folders[1]


def test_a_run_is_the_same_with_its_choice_written_out_or_left_open(tmp_path: Path) -> None:
    write_config(config_of(), tmp_path)
    for near in (NEAR, True, "auto", NearConfig(epochs=5)):
        assert same_run(config_of(near), tmp_path)
        assert as_started(config_of(near), tmp_path) == config_of()
    for near in (False, NearConfig(epochs=6), NearConfig(bridge=True), NearConfig(share=0.5)):
        assert not same_run(config_of(near), tmp_path)


def test_a_run_that_chose_none_stays_so(tmp_path: Path) -> None:
    write_config(config_of(False), tmp_path)
    assert as_started(config_of("auto"), tmp_path) == config_of(False)
    assert same_run(config_of("auto"), tmp_path)
    assert not same_run(config_of(True), tmp_path)


def test_readers_of_a_run_folder_see_ordinary_stages(tmp_path: Path) -> None:
    write_config(config_of(), tmp_path)
    assert [stage.teacher for stage in read_run_config(tmp_path).stages] == ["runs/near", "runs/frcnn", None]
