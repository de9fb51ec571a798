from __future__ import annotations

import math
from typing import Any

import pytest

from dfmsd.distillation.stages import StageConfig, check_stages, learning_rate_factor, stage_of_epoch, starts_stage
from dfmsd.errors import DfmsdError

THREE = [StageConfig(epochs=2, teacher="a"), StageConfig(epochs=1), StageConfig(epochs=3, teacher="b")]


def cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


def test_epochs_belong_to_the_stages_in_order() -> None:
    assert [stage_of_epoch(THREE, epoch) for epoch in range(6)] == [0, 0, 1, 2, 2, 2]
    assert stage_of_epoch(THREE, 99) == 2


def test_a_stage_starts_with_its_first_epoch() -> None:
    assert [starts_stage(THREE, epoch) for epoch in range(6)] == [True, False, True, True, False, False]


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 0.5), (1, 1.0), (2, 1.0), (7, 0.5), (11, cosine(0.9)), (12, 0.0), (99, 0.0)],
)
def test_continuous_is_one_warmup_and_one_cosine_over_all_stages(step: int, factor: float) -> None:
    assert learning_rate_factor(step, [2, 1], 4, warmup=2) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        *[(0, 0.5), (1, 1.0), (2, 1.0), (5, 0.5), (7, cosine(5 / 6))],  # stage 1: 8 steps
        *[(8, 0.5), (9, 1.0), (10, 1.0), (11, 0.5), (12, 0.0)],  # stage 2: 4 steps
    ],
)
def test_restart_warms_up_and_comes_down_in_every_stage(step: int, factor: float) -> None:
    assert learning_rate_factor(step, [2, 1], 4, warmup=2, schedule="restart") == pytest.approx(factor)


def test_one_stage_is_the_same_under_both_schedules() -> None:
    for step in range(20):
        factors = {learning_rate_factor(step, [3], 5, warmup=3, schedule=name) for name in ("continuous", "restart")}
        assert len(factors) == 1


def test_no_warmup_starts_at_the_full_rate() -> None:
    assert learning_rate_factor(0, [1], 10, warmup=0) == 1


def test_a_warmup_never_takes_more_than_half() -> None:
    assert [learning_rate_factor(step, [1], 4, warmup=1000) for step in range(4)] == pytest.approx([0.5, 1, 1, 0.5])


@pytest.mark.parametrize("schedule", ["continuous", "restart"])
def test_a_run_of_a_single_step_trains(schedule: str) -> None:
    assert learning_rate_factor(0, [1], 1, warmup=100, schedule=schedule) == 1


def test_a_stage_has_none_one_or_several_teachers() -> None:
    given = [None, [], "a", ["a"], ["b", "a"]]
    assert [StageConfig(1, teacher).teachers for teacher in given] == [(), (), ("a",), ("a",), ("b", "a")]


def test_sensible_plans_are_accepted() -> None:
    check_stages(THREE)
    check_stages([StageConfig(1, ["a", "b"]), StageConfig(1, ["b", "a"], fresh=False)])
    check_stages([StageConfig(epochs=1)])
    check_stages([StageConfig(epochs=1, teacher="a"), StageConfig(epochs=1, teacher="b", fresh=False)])


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], r"stages: the list is empty; give at least one"),
        (
            [StageConfig(epochs=1, teacher="a", fresh=False)],
            r"stages\.0\.fresh: false reuses",
        ),
        (
            [StageConfig(1), StageConfig(1, "a", fresh=False)],
            r"stages\.1\.fresh: false reuses",
        ),
        (
            [StageConfig(1, "a"), StageConfig(1, [], fresh=False)],
            r"stages\.1\.fresh: false reuses",
        ),
        (
            [StageConfig(1, "a"), StageConfig(1, fresh=False)],
            r"stages\.1\.fresh: false reuses",
        ),
        ([StageConfig(0)], r"^stages\.0\.epochs must be at least 1, got 0"),
        ([StageConfig(1), StageConfig(-1)], r"^stages\.1\.epochs must be at least 1, got -1"),
        ([StageConfig(1, ["b", "a", "b"])], r"^stages\.0\.teacher: b is given twice in one stage; name each"),
        ([StageConfig(1), StageConfig(1, ["a", ""])], r"^stages\.1\.teacher has an empty name"),
        ([StageConfig(1, "")], r"^stages\.0\.teacher has an empty name"),
    ],
)
def test_impossible_plans_are_refused_in_one_line(stages: list[StageConfig], message: str) -> None:
    with pytest.raises(DfmsdError, match=message) as caught:
        check_stages(stages)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 1.5}, "^stages: epochs must be an integer, got 1.5"),
        ({"epochs": True}, "^stages: epochs must be an integer, got True"),
        ({"epochs": 1, "teacher": 3}, "^stages: teacher must be a string or a list or null, got 3"),
        ({"epochs": 1, "fresh": "no"}, "^stages: fresh must be true or false, got 'no'"),
    ],
)
def test_an_invalid_stage_is_refused_when_it_is_built(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DfmsdError, match=message) as caught:
        StageConfig(**values)
    assert "\n" not in str(caught.value)
