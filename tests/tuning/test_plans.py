from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.helpers.fixtures import STUDENT

from dfmsd.distillation.stages import NearConfig, StageConfig
from dfmsd.errors import DfmsdError
from dfmsd.tuning import plans
from dfmsd.tuning.config import TuneConfig
from dfmsd.tuning.folder import SearchFolder
from dfmsd.tuning.plans import build_plan, default_plans, plan_stages, refused_plans
from dfmsd.tuning.problem import pose

MakeTune = Callable[..., TuneConfig]
CLASSES = ("square", "disc")


def test_default_plans_are_each_teacher_all_in_sequence_and_all_at_once(
    tune_config: MakeTune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "_suggests_near", lambda config, name: name == "near+T2")
    config = tune_config(tmp_path).as_trial()
    assert default_plans(config) == ["config", "T1", "T2", "T1+T2", "T1&T2", "near+T2"]
    first, second = (stage.teachers[0] for stage in config.stages)
    config = tune_config(tmp_path, stages=[StageConfig(8, teacher=[first, second])]).as_trial()
    assert default_plans(config) == ["config", "T1", "T2", "T1+T2", "near+T2"]
    config = tune_config(tmp_path, stages=[StageConfig(8, teacher=first)]).as_trial()
    assert default_plans(config) == ["config"]


def test_near_teacher_is_only_tried_for_a_bigger_teacher_of_another_architecture(
    tune_config: MakeTune, tmp_path: Path
) -> None:
    config = tune_config(tmp_path).as_trial()
    assert not plans._suggests_near(config, "near+T1")


def test_trials_share_a_near_teacher_whatever_their_settings(tune_config: MakeTune, tmp_path: Path) -> None:
    _, teacher = (stage.teachers[0] for stage in tune_config(tmp_path).stages)
    near = NearConfig(backbone="test_convnext", pretrained=False, out="elsewhere")
    config = tune_config(tmp_path, stages=[StageConfig(6, teacher=teacher, near=near)]).as_trial()
    plan = build_plan(config, "config", tmp_path / "teachers")
    [folder] = plan.recipes
    assert folder.startswith(str(tmp_path / "teachers" / "near-fcos-test_convnext-"))
    assert [(stage.epochs, stage.teachers) for stage in plan.stages] == [(2, (folder,)), (4, (teacher,))]
    [written] = plan.written
    assert isinstance(written.near, NearConfig)
    assert (written.near.backbone, written.near.out) == ("test_convnext", None)
    assert refused_plans(config, {"config": plan}, CLASSES) == {}


def test_plan_that_does_not_apply_is_left_out_unless_it_was_asked_for(
    tune_config: MakeTune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (stage.teachers[0] for stage in tune_config(tmp_path).stages)
    values = {
        "loss": "crosskd",  # which compares heads
        "stages": [StageConfig(8, teacher=first)],
        "student": replace(STUDENT, fpn_channels=32),
    }
    folder = SearchFolder(tmp_path / "out")
    monkeypatch.setattr(plans, "teachers_of", lambda config: [first, second])
    problem = pose(tune_config(tmp_path / "out", {}, **values), CLASSES, folder)
    assert problem.space["plan"].distribution.choices == ("config",)  # type: ignore[attr-defined]
    assert "plan T2 does not apply: stage 1" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(DfmsdError, match=r"tune.space.plan: T2 does not apply: stage 1"):
        pose(tune_config(tmp_path / "out", {"plan": ["config", "T2"]}, **values), CLASSES, folder)


def test_impossible_plans_are_refused(tune_config: MakeTune, tmp_path: Path) -> None:
    config = tune_config(tmp_path).as_trial()
    with pytest.raises(DfmsdError, match=r"tune.space.plan: near\+T1&T2: "):
        build_plan(config, "near+T1&T2", tmp_path)
    short = tune_config(tmp_path, stages=[StageConfig(1, teacher=list(plans.teachers_of(config)))]).as_trial()
    with pytest.raises(DfmsdError, match="epochs must be at least the number of stages, 2, got 1"):
        plan_stages(short, "T1+T2")
    assert "T1+T2" not in default_plans(short)
