"""What a run does with data that hold no objects, no objects of a class, or copies."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.annotations import edit
from tests.helpers.fixtures import STUDENT

from dfmsd.comparison.config import CompareConfig
from dfmsd.comparison.runner import compare
from dfmsd.data import CocoDataModule, DataConfig
from dfmsd.detectors import load_detector
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine.build import check_batches
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.optim import OptimConfig
from dfmsd.engine.preflight import preflight
from dfmsd.engine.run import check, distill, train
from dfmsd.errors import DfmsdError
from dfmsd.evaluation.evaluate import evaluate
from dfmsd.ranking.ranker import rank

Make = Callable[..., Any]


def as_crowds(raw: dict[str, Any]) -> None:
    for annotation in raw["annotations"]:
        annotation["iscrowd"] = 1


@pytest.fixture
def data(tiny_coco: Path) -> DataConfig:
    return DataConfig(str(tiny_coco), image_size=64, batch_size=4)


@pytest.fixture
def make_commands(distill_config: Make, train_config: Make, tiny_teachers: tuple[str, str], tmp_path: Path) -> Make:
    """Return a function from data to what would run on them, by command."""

    def make(data: DataConfig) -> dict[str, Callable[[], object]]:
        config: DistillConfig = distill_config(tmp_path / "run", data=data)
        alone: TrainConfig = train_config(tmp_path / "run", data=data)
        pairs = CompareConfig(
            data=data, student=STUDENT, pairs={"a": [tiny_teachers[0]]}, methods=["pkd"], out=str(tmp_path / "run")
        )
        return {
            "train": lambda: train(alone),
            "distill": lambda: distill(config),
            "check": lambda: check(config),
            "rank": lambda: rank(config, steps=0),
            "compare": lambda: compare(pairs),
        }

    return make


@pytest.fixture
def commands(data: DataConfig, make_commands: Make) -> dict[str, Callable[[], object]]:
    commands: dict[str, Callable[[], object]] = make_commands(data)
    return commands


@pytest.mark.parametrize("command", ["train", "distill", "check", "rank", "compare"])
def test_data_without_objects_are_refused_before_any_work(
    tiny_coco: Path, commands: dict[str, Callable[[], object]], tmp_path: Path, command: str
) -> None:
    edit(tiny_coco, as_crowds, "val")
    with pytest.raises(DfmsdError, match=r"no annotated object, so no AP can be measured; all \d+ are iscrowd"):
        commands[command]()
    edit(tiny_coco, as_crowds, "train")
    with pytest.raises(DfmsdError, match=r"no annotation to train on; all \d+ are iscrowd"):
        commands[command]()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "distill", "check", "rank", "compare"])
def test_a_batch_of_more_images_than_there_are_is_refused_before_any_work(
    data: DataConfig, make_commands: Make, tmp_path: Path, command: str
) -> None:
    work = make_commands(replace(data, batch_size=9))[command]
    with pytest.raises(
        DfmsdError, match=r"^data\.batch_size is 9, but there are 8 training images; set it to 8 or fewer$"
    ):
        work()
    assert not (tmp_path / "run").exists()


def test_a_step_takes_no_more_images_than_there_are(data: DataConfig, train_config: Make, tmp_path: Path) -> None:
    with pytest.raises(DfmsdError, match=r"^optim\.effective_batch is 12, but there are 8 training images"):
        train(train_config(tmp_path / "run", data=data, optim=OptimConfig(effective_batch=12)))


def test_processes_divide_the_images(data: DataConfig) -> None:
    module = CocoDataModule(replace(data, batch_size=4))
    check_batches(module, OptimConfig(), 2)
    with pytest.raises(DfmsdError, match="is 4 in each of 3 processes, but there are 8 training images; set it to 2"):
        check_batches(module, OptimConfig(), 3)


def test_images_held_out_of_the_training_ones_may_be_in_a_batch(data: DataConfig) -> None:
    divided = CocoDataModule(replace(data, holdout=0.25, batch_size=8))
    assert (divided.num_labeled, len(divided.val)) == (7, 1)
    check_batches(divided, OptimConfig())


def test_an_evaluation_without_objects_is_refused(
    tiny_coco: Path, data: DataConfig, tiny_teachers: tuple[str, str]
) -> None:
    edit(tiny_coco, as_crowds, "train")  # of which an evaluation needs none
    detector = load_detector(tiny_teachers[0])
    assert evaluate(detector, CocoDataModule(data).val)["AP"] is not None
    edit(tiny_coco, as_crowds, "val")
    with pytest.raises(DfmsdError, match=r"instances_val\.json: no annotated object, so no AP can be measured"):
        evaluate(detector, CocoDataModule(data).val)


def test_a_teacher_need_not_know_a_class_without_objects(
    tiny_coco: Path,
    data: DataConfig,
    distill_config: Make,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Roboflow writes a root category without annotations; the AP of the teacher is still measured."""
    for split in ("train", "val"):
        edit(tiny_coco, lambda raw: raw["categories"].insert(0, {"id": 0, "name": "cells"}), split)
    config = distill_config(tmp_path / "run", data=data)
    with caplog.at_level(logging.WARNING, "dfmsd"), pytest.raises(DfmsdError, match=r"measures AP .* about 0"):
        check(config)  # the teachers are not trained
    assert caplog.text.count("no annotation of class cells") == 1
    edit(tiny_coco, lambda raw: raw["annotations"][0].update(category_id=0), "val")
    monkeypatch.setattr("dfmsd.engine.preflight.evaluate", lambda *_, **__: {"AP": 0.5})
    assert {line.partition(" know ")[2].partition(":")[0] for line in check(config).notes} == {
        "cells of the data's 3 classes"
    }


def test_the_first_images_may_not_be_without_objects(tiny_coco: Path, data: DataConfig, task: DistillationTask) -> None:
    edit(tiny_coco, lambda raw: raw.update(annotations=[a for a in raw["annotations"] if a["image_id"] > 1]), "val")
    with pytest.raises(DfmsdError, match="no annotated object in the first 1 of 4 images"):
        preflight(task, CocoDataModule(data), images=1)
