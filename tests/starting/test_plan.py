from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.starting.conftest import MakeFacts

from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.configfile import parse_config
from dfmsd.starting.draft import Choice, plain
from dfmsd.starting.facts import Facts, TeacherFacts
from dfmsd.starting.models import choose_student
from dfmsd.starting.plan import plan_data, plan_distillation, plan_training

MakeTeacher = Callable[..., TeacherFacts]


def distillation(facts: Facts, teacher: TeacherFacts, epochs: int = 54) -> Any:
    """Return the drafted config."""
    student = choose_student(teacher, None)
    draft = plan_distillation(facts, teacher, plan_data(facts, epochs), student, Choice(epochs), "runs/my")
    return parse_config(DistillConfig, plain(draft))


def test_a_drafted_distillation_is_a_config(facts: MakeFacts, teacher: MakeTeacher) -> None:
    config = distillation(facts(teacher=teacher(image_size=256)), teacher(image_size=256))
    assert (config.data.image_size, config.teacher_size) == (256, None)
    assert (config.epochs, config.eval_every, config.balance) == (54, 5, 2.0)
    assert config.stages[0].teachers == ("runs/teacher",)


def test_a_teacher_of_large_images_sees_large_ones(facts: MakeFacts, teacher: MakeTeacher) -> None:
    large = teacher(image_size=640)
    config = distillation(facts(teacher=large), large)
    assert (config.data.image_size, config.teacher_size) == (192, 640)


def test_a_teacher_sees_images_enlarged_twice_at_most(facts: MakeFacts, teacher: MakeTeacher) -> None:
    coco = teacher(image_size=1056)
    config = distillation(facts(teacher=coco, side=120), coco)
    assert (config.data.image_size, config.teacher_size) == (128, 256)


@pytest.mark.parametrize(("root", "flip"), [("digits", 0.0), ("data", 0.5)])
def test_digits_are_not_mirrored(facts: MakeFacts, root: str, flip: float) -> None:
    assert plan_data(facts(root=root), 54)["flip"].value == flip


def test_a_drafted_training_is_a_config(facts: MakeFacts, teacher: MakeTeacher) -> None:
    model = choose_student(teacher(), None)
    draft = plan_training(plan_data(facts(holdout=0.2), 29), model, Choice(29), "runs/my-teacher")
    config = parse_config(TrainConfig, plain(draft))
    assert (config.epochs, config.data.holdout, config.data.augment) == (29, 0.2, "light")
    assert config.data.scale_jitter == (0.75, 1.35)


def test_a_teacher_that_is_trained_first_sees_what_the_student_sees(facts: MakeFacts, teacher: MakeTeacher) -> None:
    data = plan_data(facts(), 30)
    training = parse_config(TrainConfig, plain(plan_training(data, choose_student(None, None), Choice(30), "runs/a")))
    draft = plan_distillation(facts(), teacher(), data, choose_student(None, None), Choice(30), "runs/my")
    config = parse_config(DistillConfig, plain(draft))
    assert training.data.augment == config.data.augment == "strong"
    assert training.data.augmentation == config.data.augmentation
    assert config.teacher_cache is None


@pytest.mark.parametrize(("epochs", "augment", "cache"), [(29, "light", "ram"), (30, "strong", None)])
def test_many_epochs_are_strongly_augmented_which_no_cache_can_serve(
    facts: MakeFacts, teacher: MakeTeacher, epochs: int, augment: str, cache: str | None
) -> None:
    config = distillation(facts(teacher=teacher()), teacher(), epochs)
    assert (config.data.augment, config.teacher_cache) == (augment, cache)
