from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dfmsd.data import DataConfig
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.optim import OptimConfig
from dfmsd.estimation.prediction import missing_share, predict

MS = {
    "student": 100.0,
    "1/update": 10.0,
    "2/teacher": 50.0,
    "2/loss": 20.0,
    "2/stored": 60.0,
    "2/cached": 1.0,
    "2/update": 15.0,
    "load": 2.0,
    "decode": 30.0,
    "detect": 40.0,
}
SIZES = {"train_images": 35, "val_images": 9}


def config(flip: float = 0.0, **values: Any) -> DistillConfig:
    """Return a stage of two epochs without teacher and one of three with a teacher; eight steps of four images."""
    stages = [StageConfig(epochs=2), StageConfig(epochs=3, teacher="t")]
    data = DataConfig(batch_size=4, flip=flip)
    return DistillConfig(**{"out": "run", "data": data, "stages": stages, **values})


def test_step_is_the_sum_of_its_parts() -> None:
    found = predict(config(), MS, **SIZES)
    plain, taught = found.stages
    assert (plain.epochs, plain.first_step_ms, plain.step_ms) == (2, 100 + 10 + 30, 100 + 10 + 2)
    assert (taught.epochs, taught.first_step_ms, taught.step_ms) == (3, 187, 100 + 15 + 50 + 20 + 2)
    assert (found.steps_per_epoch, found.steps) == (8, 40)
    assert found.evaluations == 5
    assert found.evaluation_s == pytest.approx(3 * 0.042)
    assert found.hours == pytest.approx((8 * (140 + 112 + 3 * 187) + 5 * 3 * 42) / 3.6e6)


def test_pseudo_labels_are_found_once() -> None:
    found, plain = (predict(config(), {**MS, "label": 70.0}, **SIZES, labeling_images=count) for count in (9, 0))
    assert (found.labeling_s, plain.labeling_s) == (pytest.approx(3 * 0.1), 0)
    assert found.hours - plain.hours == pytest.approx(0.3 / 3600)
    hidden = predict(config(), {**MS, "label": 70.0}, **SIZES, labeling_images=9, workers=2)
    assert hidden.labeling_s == pytest.approx(3 * 0.07)


def test_a_stage_without_labels_has_neither_a_head_nor_an_evaluation() -> None:
    stages = [StageConfig(3, "t", labels=False), StageConfig(2, "t")]
    ms = {**MS, "pyramid": 60.0, "1/teacher": 50.0, "1/loss": 20.0}
    found = predict(config(stages=stages, eval_every=2), ms, **SIZES)
    assert found.stages[0].step_ms == 60 + 10 + 50 + 20 + 2
    assert found.stages[1].step_ms == 100 + 15 + 50 + 20 + 2
    assert found.steps == 40
    assert found.evaluations == 2  # epochs 4 and 5


@pytest.mark.parametrize("deliver", ["best", "auto"])
def test_a_choice_at_the_end_takes_one_more_evaluation(deliver: str) -> None:
    last, choosing = (predict(config(deliver=one), MS, **SIZES) for one in ("last", deliver))
    assert choosing.evaluations == last.evaluations + 1
    assert choosing.hours > last.hours


def test_cache_skips_the_teacher_after_the_first_epoch() -> None:
    taught = predict(config(teacher_cache="ram"), MS, **SIZES).stages[1]
    assert (taught.first_step_ms, taught.step_ms) == (100 + 15 + 60 + 20 + 2, 100 + 15 + 1 + 20 + 2)


def test_uncached_share_is_computed_in_every_epoch() -> None:
    taught = predict(config(teacher_cache="ram"), MS, **SIZES, kept=0.25).stages[1]
    assert taught.step_ms == pytest.approx(137 + 0.75 * 60 + 0.25 * 1)


def test_both_versions_of_a_flipped_image_are_computed() -> None:
    taught = predict(config(flip=0.5, teacher_cache="ram"), MS, **SIZES).stages[1]
    assert taught.step_ms == pytest.approx(137 + 0.25 * 60 + 0.75 * 1)  # the third epoch: unseen with 1/2 * 1/2


@pytest.mark.parametrize(("kind", "step"), [("ram", 60.0), ("disk", 1.0)])
def test_returning_teacher_is_cached_on_disk_only(kind: str, step: float) -> None:
    stages = [StageConfig(1, "t"), StageConfig(1, "other"), StageConfig(1, "t")]
    parts = {"update": 0.0, "loss": 0.0, "stored": 60.0, "cached": 1.0}
    ms = {f"{stage}/{part}": value for stage in (1, 2, 3) for part, value in parts.items()}
    run = replace(config(), stages=stages, teacher_cache=kind)
    third = predict(run, {**ms, "student": 0.0, "load": 0.0, "decode": 0.0, "detect": 0.0}, **SIZES).stages[2]
    assert third.step_ms == step


def test_a_pool_is_new_until_each_version_has_been_seen() -> None:
    data = DataConfig(augment="strong", augment_pool=3)
    assert [missing_share(data, seen) for seen in range(5)] == [1, 1, 1, 0, 0]


def test_the_first_unmixed_epoch_of_a_pool_is_new() -> None:
    run = config(teacher_cache="disk")
    run = replace(run, data=replace(run.data, augment="strong", flip=0.5, augment_pool=1, mosaic_off=1))
    last = predict(run, MS, **SIZES).stages[1]
    assert (last.first_step_ms, last.step_ms) == (137 + 60, 137 + 60)
    kept = predict(replace(run, data=replace(run.data, mosaic_off=0)), MS, **SIZES).stages[1]
    assert (kept.first_step_ms, kept.step_ms) == (137 + 60, 137 + 1)


@pytest.mark.parametrize("pool", [None, 3])
@pytest.mark.parametrize("flip", [0.0, 0.3, 0.5, 1.0])
def test_missing_share_matches_random_flips(flip: float, pool: int | None) -> None:
    flips = np.random.default_rng(0).random((4, 20_000)) < flip
    if pool:
        flips[pool:] = flips[: len(flips) - pool]
    for epoch in range(4):
        new = (flips[:epoch] != flips[epoch]).all(axis=0).mean()
        assert missing_share(DataConfig(flip=flip, augment_pool=pool), epoch) == pytest.approx(new, abs=0.02)


def test_loader_processes_run_in_parallel_to_the_step() -> None:
    slow = {**MS, "load": 300.0, "decode": 500.0}
    plain = predict(config(), slow, **SIZES, workers=2).stages[0]
    assert (plain.first_step_ms, plain.step_ms) == (250, 150)
    assert predict(config(), MS, **SIZES, workers=2).stages[0].step_ms == 110


def test_processes_share_images_and_eval_every() -> None:
    found = predict(config(devices=2, eval_every=2), MS, **SIZES)
    assert found.steps_per_epoch == 18 // 4
    assert found.evaluations == 3  # epochs 2, 4 and the last
    assert predict(config(devices=2, num_nodes=2), MS, **SIZES).steps_per_epoch == 18 // 2 // 4


def test_larger_batches_take_longer_in_proportion_to_their_pixels() -> None:
    data = DataConfig(batch_size=4, flip=0, image_size=64, multi_scale=(1.0, 2.0))  # 64, 96 and 128
    found = predict(config(data=data), MS, **SIZES).stages[0]
    assert found.step_ms == pytest.approx((1 + 1.5**2 + 2**2) / 3 * 100 + 10 + 2)


def test_a_step_of_several_batches_updates_once() -> None:
    optim = OptimConfig(effective_batch=12)
    found = predict(config(optim=optim), MS, **SIZES)
    assert (found.steps_per_epoch, found.steps) == (3, 15)  # of three, three and two batches
    assert found.stages[0].step_ms == pytest.approx(8 / 3 * (100 + 2) + 10)
    whole = predict(config(), MS, **SIZES)
    assert found.hours == pytest.approx(whole.hours - (2 * 10 + 3 * 15) * (8 - 3) / 3.6e6)


@pytest.mark.parametrize(("kind", "steps"), [("ram", [60.0, 30.5, 60.0]), ("disk", [60.0, 30.5, 1.0])])
def test_teacher_joined_by_another_is_cached(kind: str, steps: list[float]) -> None:
    stages = [StageConfig(1, "t"), StageConfig(1, ["t", "other"]), StageConfig(1), StageConfig(1, "other")]
    parts = {"update": 0.0, "loss": 0.0, "stored": 60.0, "cached": 1.0}
    ms = {f"{stage}/{part}": value for stage in (1, 2, 3, 4) for part, value in parts.items()}
    run = replace(config(), stages=stages, teacher_cache=kind)
    found = predict(run, {**ms, "student": 0.0, "load": 0.0, "decode": 0.0, "detect": 0.0}, **SIZES).stages
    assert [found[index].step_ms for index in (0, 1, 3)] == steps  # of two teachers one is stored, one found
