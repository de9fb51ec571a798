from __future__ import annotations

import pytest
import yaml

from dfmsd.distillation.stages import StageConfig
from dfmsd.reporting.plan import folder_of, paired_levels, read_plan, teachers_of, term_factors
from dfmsd.reporting.records import read_run
from dfmsd.types import LevelSpec


def test_the_plan_is_the_config_that_was_written(finished_run, tiny_teachers):
    plan = read_plan(read_run(finished_run("plan")))
    assert teachers_of(plan) == list(tiny_teachers)
    assert [stage.epochs for stage in plan.stages] == [2, 1]
    assert teachers_of(read_plan(read_run(finished_run("bare", no_distill=True)))) == []


@pytest.mark.parametrize("text", ["seed: 0\nnobody_knows: 1\n", "a: [", "[1]", ""])
def test_a_config_of_another_version_gives_no_plan(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    assert read_plan(read_run(tmp_path)) is None
    assert teachers_of(None) == []


def test_the_folder_of_a_teacher(finished_run, tmp_path):
    run = finished_run("teacher", no_distill=True)
    recipe = tmp_path / "teacher.yaml"
    recipe.write_text(yaml.safe_dump({"out": str(run)}))
    assert folder_of(str(run)) == folder_of(str(recipe)) == run
    for reference in (str(tmp_path), "hf:somebody/detr", "FCOS_ResNet50_FPN_Weights.COCO_V1", "gone.yaml"):
        assert folder_of(reference) is None


def test_factors_are_weight_times_balance(distill_config, tmp_path, tiny_teachers):
    first, second = tiny_teachers
    stages = [
        StageConfig(epochs=1, teacher=first),
        StageConfig(epochs=1, teacher=[first, second]),
        StageConfig(epochs=1, teacher=second, loss=[{"name": "pkd", "weight": 3.0}, {"name": "mgd"}]),
    ]
    plan = distill_config(tmp_path, stages=stages, loss={"name": "dfmsd", "weight": 2.0}, balance=0.5)
    balance = {"1": {"mask": 4.0, "sfa": 0.25}, "2": {"T1.mask": 10.0, "T2.mask": 100.0}}
    assert term_factors(plan, balance) == {
        "mask": {1: 8.0},
        "sfa": {1: 0.5},
        "T1.mask": {2: 20.0},
        "T2.mask": {2: 200.0},  # nobody wrote the others down
    }
    plan = distill_config(tmp_path, stages=stages, loss={"name": "dfmsd", "weight": 2.0})
    assert term_factors(plan, None) == {
        **{term: {1: 2.0} for term in ("mask", "sfa")},
        **{f"T{number}.{term}": {2: 2.0} for number in (1, 2) for term in ("mask", "sfa")},
        "pkd": {3: 3.0},
        "mgd": {3: 2e-5},
    }


def test_a_loss_balanced_as_a_whole_has_one_factor(distill_config, tmp_path):
    plan = distill_config(tmp_path, balance=0.5, balance_by="loss")
    assert term_factors(plan, {"1": {"loss": 3.0}}) == {"mask": {1: 3.0}, "sfa": {1: 3.0}}


def test_levels_are_paired_as_in_the_run(distill_config, tmp_path, tiny_teachers):
    student = [LevelSpec(f"p{i}", 16, 2**i) for i in (3, 4, 5)]
    teacher = [LevelSpec(f"t{i}", 32, 2**i) for i in (2, 3, 4)]
    plan = distill_config(tmp_path)
    lines = paired_levels(plan, student, {tiny_teachers[1]: teacher})
    assert [(line.stage, line.pair.student.name, line.pair.teacher.name) for line in lines] == [
        (2, "p3", "t3"),
        (2, "p4", "t4"),
    ]
    assert {line.alignment for line in lines} == {"1x1 convolution"}
    plan = distill_config(tmp_path, loss={"name": "pkd", "pairing": "index", "resize": "teacher"})
    lines = paired_levels(plan, student, {tiny_teachers[0]: student, tiny_teachers[1]: teacher})
    assert [line.alignment for line in lines] == ["none needed"] * 3 + ["1x1 convolution, teacher resized"] * 3
    assert paired_levels(plan, student, {tiny_teachers[0]: student[:1]}) == []  # another detector by now
