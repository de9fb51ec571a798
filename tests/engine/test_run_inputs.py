"""What a run refuses before any work, and the teachers that it makes itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.few_neurons import FewNeurons

from dfmsd.data import DataConfig
from dfmsd.detectors import DetectorConfig, build_detector, save_detector
from dfmsd.detectors.inputsizes import InputSizes
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.build import assemble_task
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.optim import OptimConfig
from dfmsd.engine.run import check, distill, train
from dfmsd.engine.saved_config import differing_keys, to_yaml, write_config
from dfmsd.engine.teachers import find_teachers, load_teachers
from dfmsd.errors import INTERRUPTED, PREEMPTED, DfmsdError, Stopped
from dfmsd.types import FeaturePyramid

MakeDistill = Callable[..., DistillConfig]
MakeTrain = Callable[..., TrainConfig]
MakeRun = Callable[..., Path]


def untrained(*_: Any, **__: Any) -> None:
    pytest.fail("a teacher was trained")


@pytest.fixture
def folder(train_config: MakeTrain, tmp_path: Path) -> Path:
    """A folder that holds a run's config and nothing else."""
    run = tmp_path / "run"
    run.mkdir()
    write_config(train_config(run), run)
    return run


def test_an_existing_run_is_neither_resumed_nor_deleted_by_mistake(train_config: MakeTrain, folder: Path) -> None:
    config = train_config(folder)
    with pytest.raises(DfmsdError, match="already holds a run"):
        train(config)
    with pytest.raises(DfmsdError, match=r"config\.yaml differs from this config in seed; resume it with"):
        train(replace(config, seed=1), resume=True)
    with pytest.raises(DfmsdError, match=r"in epochs; the learning rate falls over .*: choose another `out`"):
        train(replace(config, epochs=9), resume=True)
    moved = replace(config, data=replace(config.data, root="elsewhere"))
    with pytest.raises(DfmsdError, match=r"in data\.root; if the same data has moved, write"):
        train(moved, resume=True)
    with pytest.raises(DfmsdError, match="pass one of them"):
        train(config, resume=True, overwrite=True)
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


def test_a_refused_run_does_not_overwrite_the_folder(train_config: MakeTrain, folder: Path) -> None:
    broken = train_config(folder, data=DataConfig(str(folder / "nowhere")))
    with pytest.raises(DfmsdError, match="no folder"):
        train(broken, overwrite=True)
    unknown = train_config(folder, model=DetectorConfig(backbone="resnet19"))
    with pytest.raises(DfmsdError, match="resnet19"):
        train(unknown, overwrite=True)
    assert (folder / "config.yaml").exists()


def test_an_empty_folder_cannot_be_resumed(train_config: MakeTrain, tmp_path: Path) -> None:
    with pytest.raises(DfmsdError, match="holds no run, so there is nothing to resume"):
        train(train_config(tmp_path / "none"), resume=True)
    assert not (tmp_path / "none").exists()


def test_a_file_is_refused_as_a_run_folder(train_config: MakeTrain, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DfmsdError, match="is a file; name a folder"):
        train(train_config(tmp_path / "file"))


def test_what_can_be_refused_at_once_is(
    distill_config: MakeDistill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(_: object) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr("dfmsd.engine.prepare.read_data", begin)
    (tmp_path / "file").touch()
    with pytest.raises(DfmsdError, match=r"out: cannot write to .*file/run \(Not a directory\); choose another folder"):
        distill(distill_config(tmp_path / "file" / "run"))
    for run in (check, distill):
        with pytest.raises(DfmsdError, match="check_images must be at least 1, got 0; leave it out to use all images"):
            run(distill_config(tmp_path / "run"), check_images=0)
    assert not (tmp_path / "run").exists()


def test_a_run_may_go_on_with_what_suits_another_machine(distill_config: MakeDistill, tmp_path: Path) -> None:
    config = replace(distill_config(tmp_path), teacher_cache="ram")
    write_config(config, tmp_path)
    data = replace(config.data, workers=3, cache="off", cache_gib=1.0)
    changed = replace(config, data=data, teacher_cache="disk", teacher_cache_gib=1.0)
    assert differing_keys(changed, tmp_path) == []
    assert differing_keys(replace(config, teacher_cache=None), tmp_path) == ["teacher_cache"]


def test_a_run_from_before_the_balance_had_a_schedule_kept_it_constant(
    distill_config: MakeDistill, tmp_path: Path
) -> None:
    config = distill_config(tmp_path, balance_schedule="cosine")
    write_config(config, tmp_path)
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("balance_schedule: cosine\n", ""))
    assert differing_keys(config, tmp_path) == ["balance_schedule"]
    assert differing_keys(replace(config, balance_schedule="constant"), tmp_path) == []


def test_the_keys_in_which_a_resumed_run_differs_are_named(distill_config: MakeDistill, tmp_path: Path) -> None:
    config = distill_config(tmp_path)
    write_config(config, tmp_path)
    optim, stages = replace(config.optim, lr=1.0), [config.stages[0], replace(config.stages[1], epochs=3)]
    assert differing_keys(config, tmp_path) == []
    assert differing_keys(replace(config, optim=optim, stages=stages), tmp_path) == ["optim.lr", "stages.1.epochs"]
    assert differing_keys(replace(config, stages=stages[:1]), tmp_path) == ["stages"]
    loss = {**config.loss, "alpha": 0.5}  # type: ignore[dict-item]
    assert differing_keys(replace(config, loss=loss), tmp_path) == ["loss.alpha"]
    assert differing_keys(replace(config, teacher_cache="disk"), tmp_path) == ["teacher_cache"]
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("name: dfmsd", "name: gone"))
    assert differing_keys(config, tmp_path) == ["a key of another version"]


def test_an_unfinished_run_is_no_teacher(distill_config: MakeDistill, finished_run: MakeRun, tmp_path: Path) -> None:
    run = finished_run("teacher")
    load = partial(load_teachers, class_names=("square", "disc"), out=tmp_path / "student", train=untrained)
    assert load([str(run)]).keys() == {str(run)}
    (run / "metrics.json").unlink()
    with pytest.raises(DfmsdError, match=r"the run has not finished; resume it with .*config.yaml, or name"):
        load([str(run)])
    assert load([str(run / "student.safetensors")])


def test_a_student_with_other_classes_than_the_data_is_refused(distill_config: MakeDistill, tmp_path: Path) -> None:
    config = distill_config(tmp_path / "run")
    student = build_detector(config.student, ["disc", "square"])
    with pytest.raises(DfmsdError, match="student: its classes disc, square are not those of the data, square, disc"):
        distill(config, student=student)
    assert not (tmp_path / "run").exists()


def test_a_learning_rate_of_an_unknown_backbone_is_refused(distill_config: MakeDistill, tmp_path: Path) -> None:
    student = FewNeurons()
    student.class_names = ("square", "disc")
    config = distill_config(tmp_path / "run", optim=OptimConfig(backbone_lr=0.1))
    with pytest.raises(
        DfmsdError, match=r"^optim\.backbone_lr: .* layers of FewNeurons are its backbone; leave it out"
    ):
        distill(config, student=student)
    assert not (tmp_path / "run").exists()


class OneSize(FewNeurons):
    def features(self, images: torch.Tensor) -> FeaturePyramid:
        if images.shape[-1] == 96:
            raise RuntimeError("shapes cannot be\nmultiplied")
        return super().features(images)


@pytest.mark.parametrize("whose", ["the student", "teacher big"])
def test_sizes_of_batches_that_a_detector_cannot_take_are_refused(
    distill_config: MakeDistill, tmp_path: Path, whose: str
) -> None:
    data = DataConfig("digits", image_size=64, multi_scale=(0.5, 1.5))
    config = distill_config(tmp_path / "run", data=data, stages=[StageConfig(1, "big")])
    detectors = {name: OneSize() if name == whose else FewNeurons() for name in ("the student", "teacher big")}
    message = (
        rf"^data\.multi_scale: {whose} does not take images of 96 pixels \(shapes cannot be multiplied\); leave it"
    )
    with pytest.raises(DfmsdError, match=message):
        assemble_task(config, detectors["the student"], {"big": detectors["teacher big"]})


def test_each_size_of_the_batches_has_to_suit_the_detectors(distill_config: MakeDistill, tmp_path: Path) -> None:
    data = DataConfig("digits", image_size=64, multi_scale=(1.0, 2.0))
    config = distill_config(tmp_path / "run", data=data, stages=[StageConfig(1, "big")])
    teacher = FewNeurons()
    teacher.input_sizes = InputSizes(step=64)
    with pytest.raises(DfmsdError, match=r"^data\.multi_scale: teacher big cannot take images of 96 pixels a side"):
        assemble_task(config, FewNeurons(), {"big": teacher})


def test_a_teacher_described_by_yaml_is_trained_once(
    train_config: MakeTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = tmp_path / "teacher.yaml", tmp_path / "teacher"
    recipe.write_text(to_yaml(train_config(run)))
    made = load_teachers([str(recipe)], ("square", "disc"), tmp_path / "student", train=train)
    assert (run / "metrics.json").exists()
    used = load_teachers([str(recipe)], ("square", "disc"), tmp_path / "student", train=untrained)
    first, second = (detectors[str(recipe)].state_dict() for detectors in (made, used))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    recipe.write_text(to_yaml(train_config(run, epochs=2)))
    with pytest.raises(
        DfmsdError,
        match=r"teacher holds another run than .*teacher\.yaml describes, differing in epochs; remove it or change",
    ):
        load_teachers([str(recipe)], ("square", "disc"), tmp_path / "student", train=untrained)


def test_a_teacher_without_a_file_is_made_once(train_config: MakeTrain, tmp_path: Path) -> None:
    recipe = train_config(tmp_path / "teacher")
    found = find_teachers([recipe.out], ("square", "disc"), tmp_path / "student", recipes={recipe.out: recipe})
    assert found.untrained == {recipe.out: recipe}
    made: list[TrainConfig] = []

    def make(recipe: TrainConfig, *, resume: bool) -> None:
        made.append(recipe)
        save_detector(build_detector(recipe.model, ("square", "disc")), recipe.out)
        write_config(recipe, Path(recipe.out))
        Path(recipe.out, "metrics.json").write_text("{}")

    assert found.make(make).keys() == {recipe.out}
    again = find_teachers([recipe.out], ("square", "disc"), tmp_path / "student", recipes={recipe.out: recipe})
    assert (made, again.untrained) == ([recipe], {})
    other = {recipe.out: replace(recipe, epochs=2)}
    with pytest.raises(
        DfmsdError, match=r"holds another run than this teacher's config describes, differing in epochs; remove it or"
    ):
        find_teachers([recipe.out], ("square", "disc"), tmp_path / "student", recipes=other)


def test_a_teacher_with_another_number_of_processes_is_refused(
    train_config: MakeTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "teacher.yaml"
    recipe.write_text(to_yaml(train_config(tmp_path / "teacher", devices=2)))
    with pytest.raises(DfmsdError, match=r"teacher\.yaml would be trained in 2 processes and the next model in 1"):
        load_teachers([str(recipe)], ("square", "disc"), tmp_path / "student", train=untrained)
    with pytest.raises(DfmsdError, match="the next model in 4"):
        load_teachers([str(recipe)], ("square", "disc"), tmp_path / "student", (2, 2), train=untrained)


def test_every_teacher_is_checked_before_one_is_trained(
    train_config: MakeTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(to_yaml(train_config(tmp_path / "good")))
    bad.write_text(to_yaml(train_config(tmp_path / "bad", model=DetectorConfig(backbone="resnet19"))))
    for other, message in (
        (str(bad), "unknown backbone 'resnet19'"),
        (str(tmp_path / "none"), "no detector at"),
        (str(tmp_path / "none.yaml"), "does not exist"),
        (str(tmp_path / "out"), "is the student's own run folder"),
    ):
        with pytest.raises(DfmsdError, match=message):
            load_teachers([str(good), other], ("square", "disc"), tmp_path / "out", train=untrained)


def test_an_interrupted_teacher_stops_the_student(
    train_config: MakeTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "teacher.yaml"
    recipe.write_text(to_yaml(train_config(tmp_path / "teacher")))
    for status in (INTERRUPTED, PREEMPTED, 0):  # 0: not the first process

        def stop(*_: Any, status: int = status, **__: Any) -> None:
            raise Stopped(status)

        with pytest.raises(Stopped) as stopped:
            load_teachers([str(recipe)], ("square", "disc"), tmp_path / "student", train=stop)
        assert stopped.value.status == status


def test_an_unknown_student_is_refused_before_a_teacher_is_trained(
    distill_config: MakeDistill, train_config: MakeTrain, tmp_path: Path
) -> None:
    recipe = tmp_path / "teacher.yaml"
    recipe.write_text(to_yaml(train_config(tmp_path / "teacher")))
    config = distill_config(
        tmp_path / "run",
        student=DetectorConfig(backbone="resnet19"),
        stages=[StageConfig(epochs=1, teacher=str(recipe))],
    )
    with pytest.raises(DfmsdError, match="unknown backbone 'resnet19': did you mean"):
        distill(config)
    assert not (tmp_path / "teacher").exists()
    assert not (tmp_path / "run").exists()


def test_augmentations_are_compared_by_what_they_do(tmp_path: Path) -> None:
    config = TrainConfig(out="x", data=DataConfig(flip=0.5))
    write_config(config, tmp_path)
    assert differing_keys(replace(config, data=DataConfig(augment="light")), tmp_path) == []
    changed = replace(config, data=DataConfig(augment="light", mosaic=0.5))
    assert differing_keys(changed, tmp_path) == ["data.mosaic"]
