"""Runs with a near teacher, and teachers that are themselves distilled."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.helpers.fixtures import TINY_BACKBONE

from dfmsd.detectors import DetectorConfig, build_detector
from dfmsd.distillation.stages import NearConfig, StageConfig
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.configfile import read_config
from dfmsd.engine.interrupt import StopOnInterrupt
from dfmsd.engine.run import check, distill
from dfmsd.engine.saved_config import to_yaml
from dfmsd.errors import DfmsdError, Stopped
from dfmsd.runfolder import RunFolder

MakeDistill = Callable[..., DistillConfig]
NEAR = NearConfig(backbone=TINY_BACKBONE, pretrained=False, epochs=1)


def quietly(config: DistillConfig, **options: Any) -> RunFolder:
    return RunFolder(distill(config, allow_weak_teacher=True, check_images=1, **options).run)


def same_weights(first: RunFolder, second: RunFolder) -> bool:
    weights, others = load_file(first.weights_file), load_file(second.weights_file)
    return all(torch.equal(value, others[name]) for name, value in weights.items())


@pytest.fixture(scope="module")
def make(distill_config: MakeDistill, tiny_teachers: tuple[str, str]) -> Callable[..., DistillConfig]:
    """Make the config of two epochs with a near teacher."""

    def build(out: Path, near: Any = NEAR, **values: Any) -> DistillConfig:
        defaults: dict[str, Any] = {
            "stages": [StageConfig(2, tiny_teachers[1], near=near)],
            "eval_every": 9,
            "loss": {"name": "dfmsd", "alpha": 0},
        }
        return distill_config(out, **{**defaults, **values})

    return build


@pytest.fixture(scope="module")
def finished(make: MakeDistill, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return quietly(make(tmp_path_factory.mktemp("runs") / "run"))


def near_of(run: RunFolder) -> RunFolder:
    near = read_config(DistillConfig, run.config_file).stages[0].near
    assert isinstance(near, NearConfig)
    return RunFolder(Path(str(near.out)))


@pytest.fixture
def _no_near_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(*_: Any, **__: Any) -> None:
        pytest.fail("a near teacher was trained")

    monkeypatch.setattr("dfmsd.engine.run.train", trained)


def test_the_run_equals_the_one_that_is_written_out_by_hand(
    finished: RunFolder, make: MakeDistill, tiny_teachers: tuple[str, str], tmp_path: Path
) -> None:
    config = make(tmp_path / "run")
    recipe = tmp_path / "near.yaml"
    recipe.write_text(
        to_yaml(
            TrainConfig(
                out=str(tmp_path / "near"),
                data=config.data,
                optim=config.optim,
                eval_every=9,
                model=replace(config.student, backbone=TINY_BACKBONE),
                epochs=1,
            )
        )
    )
    stages = [StageConfig(1, str(recipe)), StageConfig(1, tiny_teachers[1])]
    by_hand = quietly(replace(config, stages=stages))
    assert same_weights(finished, by_hand)
    assert same_weights(near_of(finished), RunFolder(tmp_path / "near"))
    assert finished.metrics_file.read_text() == by_hand.metrics_file.read_text()
    assert finished.basis_file.read_text() == by_hand.basis_file.read_text()


@pytest.mark.usefixtures("_no_near_training")
def test_another_student_uses_the_same_near_teacher(finished: RunFolder, make: MakeDistill) -> None:
    other = quietly(make(finished.path.parent / "other", seed=5, loss={"name": "cwd"}))
    assert near_of(other) == near_of(finished)


def test_a_changed_setting_trains_another_near_teacher(
    finished: RunFolder, make: MakeDistill, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[TrainConfig] = []

    def train(recipe: TrainConfig, *, resume: bool) -> None:
        made.append(recipe)
        raise Stopped

    monkeypatch.setattr("dfmsd.engine.run.train", train)
    for near in (replace(NEAR, epochs=2), NEAR):
        with pytest.raises(Stopped):
            quietly(make(finished.path.parent / "changed", near, student=replace(make("x").student, head_convs=2)))
    assert len({recipe.out for recipe in made} | {str(near_of(finished))}) == 3


def test_an_interrupted_near_teacher_is_continued_by_the_same_command(
    finished: RunFolder, make: MakeDistill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopping(StopOnInterrupt):
        def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
            signal.raise_signal(signal.SIGINT)
            super().on_train_batch_end(trainer, *args, **kwargs)

    monkeypatch.setattr("dfmsd.engine.fit.StopOnInterrupt", Stopping)
    with pytest.raises(Stopped):
        quietly(make(tmp_path / "run"))
    monkeypatch.undo()
    (near,) = [RunFolder(folder) for folder in tmp_path.iterdir()]
    assert near.path.name == near_of(finished).path.name
    assert near.exists
    assert not near.finished
    run = quietly(make(tmp_path / "run"))
    assert same_weights(near, near_of(finished))
    assert same_weights(run, finished)


def test_a_run_stopped_in_its_second_stage_resumes_to_the_same_bits(
    finished: RunFolder, make: MakeDistill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopping(StopOnInterrupt):
        def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
            if trainer.global_step == 3 and trainer.max_epochs == 2:
                signal.raise_signal(signal.SIGINT)
            super().on_train_batch_end(trainer, *args, **kwargs)

    config = make(finished.path.parent / "stopped")
    monkeypatch.setattr("dfmsd.engine.fit.StopOnInterrupt", Stopping)
    with pytest.raises(Stopped):
        quietly(config)
    monkeypatch.undo()
    saved = read_config(DistillConfig, RunFolder(Path(config.out)).config_file)
    monkeypatch.setattr("dfmsd.engine.nearchoice.choose_backbone", lambda *_: pytest.fail("chosen again"))
    resumed = quietly(replace(config, stages=[replace(saved.stages[0], near={"pretrained": False})]), resume=True)
    assert same_weights(resumed, finished)


def test_a_bridge_is_distilled_before_the_student(
    make: MakeDistill, tiny_teachers: tuple[str, str], tmp_path: Path
) -> None:
    run = quietly(make(tmp_path / "run", replace(NEAR, bridge=True)))
    bridge = read_config(DistillConfig, near_of(run).config_file)
    assert bridge.stages == [replace(bridge.stages[0], epochs=1, teacher=tiny_teachers[1], near=False)]
    assert "sfa/p3" in near_of(run).log_file.read_text()


def test_the_baseline_makes_no_near_teacher(make: MakeDistill, tmp_path: Path) -> None:
    run = quietly(make(tmp_path / "run"), no_distill=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    stages = read_config(DistillConfig, run.config_file).stages
    assert [(stage.epochs, stage.teachers, stage.near) for stage in stages] == [(1, (), False), (1, (), False)]


def test_a_check_uses_the_near_teacher(finished: RunFolder, make: MakeDistill) -> None:
    findings = check(make(finished.path.parent / "checked"), allow_weak_teacher=True, check_images=1)
    assert str(near_of(finished)) in findings.ap


def yaml_of(config: DistillConfig | TrainConfig, folder: Path, name: str) -> str:
    (folder / name).write_text(to_yaml(config))
    return str(folder / name)


def test_a_distillation_is_a_teacher_and_may_have_such_teachers(
    make: MakeDistill, train_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    first = yaml_of(train_config(tmp_path / "first"), tmp_path, "first.yaml")
    stage = StageConfig(1, first)
    second = yaml_of(make(tmp_path / "second", stages=[stage]), tmp_path, "second.yaml")
    stages = [stage, StageConfig(1, second)]  # a teacher twice: of the student and of its teacher
    quietly(make(tmp_path / "run", stages=stages))
    assert all(RunFolder(tmp_path / name).finished for name in ("first", "second", "run"))


def test_a_yaml_that_is_its_own_teacher_is_refused(make: MakeDistill, tmp_path: Path) -> None:
    a, b = str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")
    first = make(tmp_path / "a", stages=[StageConfig(1, b)])
    yaml_of(first, tmp_path, "a.yaml")
    yaml_of(make(tmp_path / "b", stages=[StageConfig(1, a)]), tmp_path, "b.yaml")
    with pytest.raises(DfmsdError, match=rf"teacher {b} names itself as its teacher, through {a}; name another"):
        quietly(first)
    own = make(tmp_path / "b", stages=[StageConfig(1, b)])
    yaml_of(own, tmp_path, "b.yaml")
    with pytest.raises(DfmsdError, match=rf"teacher {b} names itself as its teacher; name another one there"):
        quietly(own)
    inherited = make(tmp_path / "b", stages=[StageConfig(1)], inherit=b)
    yaml_of(inherited, tmp_path, "b.yaml")
    with pytest.raises(DfmsdError, match="names itself"):
        quietly(inherited)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.yaml", "b.yaml"]


def test_losses_that_do_not_fit_are_refused_before_a_near_teacher_is_made(make: MakeDistill, tmp_path: Path) -> None:
    with pytest.raises(DfmsdError, match=r"has no level p9"):
        quietly(make(tmp_path / "run", loss={"name": "pkd", "pairing": {"p3": "p9"}}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_no_near_training")
@pytest.mark.parametrize("run", [distill, check])
def test_a_weak_teacher_is_refused_before_its_near_teacher_is_made(
    make: MakeDistill, tmp_path: Path, run: Callable[..., object]
) -> None:
    config = make(tmp_path / "run")  # its teacher has been trained for one step
    with pytest.raises(DfmsdError, match=rf"teacher {config.stages[0].teacher} measures AP .*`allow_weak_teacher`"):
        run(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("_no_near_training")
def test_a_teacher_of_other_classes_is_refused_before_its_near_teacher_is_made(
    make: MakeDistill, tmp_path: Path
) -> None:
    stage = StageConfig(2, "python:teacher", near=NEAR)
    teacher = build_detector(DetectorConfig("fcos", TINY_BACKBONE, fpn_channels=8), ("circle",))
    with pytest.raises(DfmsdError, match=r"python:teacher knows none of"):
        distill(make(tmp_path / "run", stages=[stage]), teachers={"python:teacher": teacher})
