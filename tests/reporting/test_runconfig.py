from __future__ import annotations

import pytest
import yaml

from dfmsd.distillation.stages import StageConfig
from dfmsd.reporting.records import read_run
from dfmsd.reporting.runconfig import paired_levels, run_config, teacher_folder, teacher_references, term_weights
from dfmsd.types import LevelSpec


def test_run_config_is_the_written_config(finished_run, tiny_teachers):
    config = run_config(read_run(finished_run("config")))
    assert teacher_references(config) == list(tiny_teachers)
    assert [stage.epochs for stage in config.stages] == [2, 1]
    assert teacher_references(run_config(read_run(finished_run("bare", no_distill=True)))) == []


@pytest.mark.parametrize("text", ["seed: 0\nnobody_knows: 1\n", "a: [", "[1]", ""])
def test_unreadable_config_is_none(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    assert run_config(read_run(tmp_path)) is None
    assert teacher_references(None) == []


def test_teacher_folder(finished_run, tmp_path):
    run = finished_run("teacher", no_distill=True)
    recipe = tmp_path / "teacher.yaml"
    recipe.write_text(yaml.safe_dump({"out": str(run)}))
    assert teacher_folder(str(run)) == teacher_folder(str(recipe)) == run
    for reference in (str(tmp_path), "hf:somebody/detr", "FCOS_ResNet50_FPN_Weights.COCO_V1", "gone.yaml"):
        assert teacher_folder(reference) is None


def test_terms_have_a_weight_and_a_balance(distill_config, tmp_path, tiny_teachers):
    first, second = tiny_teachers
    stages = [
        StageConfig(epochs=1, teacher=first),
        StageConfig(epochs=1, teacher=[first, second]),
        StageConfig(epochs=1, teacher=second, loss=[{"name": "pkd", "weight": 3.0}, {"name": "mgd"}]),
    ]
    loss = {"name": "dfmsd", "weight": 2.0}
    config = distill_config(tmp_path, stages=stages, loss=loss, balance=0.5)
    weights = term_weights(config)
    assert weights["mask"] == {1: (2.0, "balance")}
    assert weights["T2.sfa"] == {2: (2.0, "T2.balance")}
    assert weights["pkd"] == {3: (3.0, "balance")}
    config = distill_config(tmp_path, stages=stages, loss=loss, balance=None)
    assert term_weights(config) == {
        **{term: {1: (2.0, None)} for term in ("mask", "sfa")},
        **{f"T{number}.{term}": {2: (2.0, None)} for number in (1, 2) for term in ("mask", "sfa")},
        "pkd": {3: (3.0, None)},
        "mgd": {3: (2e-5, None)},
    }


def test_jointly_balanced_loss_has_one_factor(distill_config, tmp_path):
    config = distill_config(tmp_path, balance=0.5)
    assert term_weights(config) == {term: {n: (1.0, "balance") for n in (1, 2)} for term in ("mask", "sfa")}
    config = distill_config(tmp_path, loss={"name": "pkd", "pairing": {"p3": "p2", "p4": "p3"}}, balance=None)
    assert term_weights(config) == {"pkd": {n: (10.0, None) for n in (1, 2)}}  # whatever the levels' names


def test_a_stage_without_labels_is_not_balanced(distill_config, tmp_path):
    stages = [StageConfig(1, "a", labels=False), StageConfig(1, "a")]
    weights = term_weights(distill_config(tmp_path, balance=0.5, stages=stages))
    assert weights["sfa"] == {1: (1.0, None), 2: (1.0, "balance")}


def test_a_loss_on_predictions_is_not_balanced(distill_config, tmp_path):
    config = distill_config(tmp_path, loss=[{"name": "pkd"}, {"name": "crosskd"}], balance=0.5)
    weights = term_weights(config)
    assert weights["pkd"][1].balance == "balance"
    assert {weights[term][1].balance for term in weights if term != "pkd"} == {None}


def test_levels_are_paired_as_in_the_run(distill_config, tmp_path, tiny_teachers):
    record = read_run(tmp_path)
    student = [LevelSpec(f"p{i}", 16, 2**i) for i in (3, 4, 5)]
    teacher = [LevelSpec(f"t{i}", 32, 2**i) for i in (2, 3, 4)]
    config = distill_config(tmp_path)
    lines = paired_levels(record, config, student, {tiny_teachers[1]: teacher})
    assert [(line.stage, line.pair.student.name, line.pair.teacher.name) for line in lines] == [
        (2, "p3", "t3"),
        (2, "p4", "t4"),
    ]
    assert {line.alignment for line in lines} == {"1x1 convolution"}
    twice = distill_config(tmp_path, teacher_size=128)
    lines = paired_levels(record, twice, student, {tiny_teachers[1]: [*teacher, LevelSpec("t5", 32, 32)]})
    assert [(line.pair.student.stride, line.pair.teacher.name, line.pair.teacher.stride) for line in lines] == [
        (8, "t4", 8),
        (16, "t5", 16),
    ]
    config = distill_config(tmp_path, loss={"name": "pkd", "pairing": "index", "resize": "teacher"})
    lines = paired_levels(record, config, student, {tiny_teachers[0]: student, tiny_teachers[1]: teacher})
    assert [line.alignment for line in lines] == ["not needed"] * 3 + ["1x1 convolution, teacher resized"] * 3
    config = distill_config(tmp_path, loss={"name": "pkd", "pairing": {"p3": "t2", "p5": "t4"}})
    lines = paired_levels(record, config, student, {tiny_teachers[1]: teacher})
    assert [(line.pair.student.name, line.pair.teacher.name) for line in lines] == [("p3", "t2"), ("p5", "t4")]
    assert paired_levels(record, config, student, {tiny_teachers[1]: student}) == []  # now another detector


def test_a_rotation_replaces_the_convolution_between_unlike_channels(distill_config, tmp_path, tiny_teachers):
    record = read_run(tmp_path)
    student = [LevelSpec(f"p{i}", 16, 2**i) for i in (3, 4)]
    levels = {
        tiny_teachers[0]: [LevelSpec(f"a{i}", 16, 2**i) for i in (3, 4)],
        tiny_teachers[1]: [LevelSpec(f"b{i}", 32, 2**i) for i in (3, 4)],
    }
    first = StageConfig(1, tiny_teachers[0])
    former, student_basis = (StageConfig(1, tiny_teachers[1], basis=basis) for basis in ("former", "student"))
    config = distill_config(tmp_path, loss={"name": "pkd"}, stages=[first, former, student_basis])
    lines = paired_levels(record, config, student, levels)
    assert [(line.stage, line.alignment) for line in lines] == [
        (stage, alignment) for stage, alignment in ((1, "not needed"), (2, "rotation"), (3, "rotation")) for _ in "34"
    ]
    assert lines[2].pair.teacher == LevelSpec("b3", 32, 8)  # its own channels, before the rotation
    wide = {**levels, tiny_teachers[0]: [level._replace(channels=24) for level in levels[tiny_teachers[0]]]}
    assert paired_levels(record, config, student, wide)[2].alignment == "rotation, 1x1 convolution"
    assert {
        line.stage for line in paired_levels(record, config, student, {tiny_teachers[1]: levels[tiny_teachers[1]]})
    } == {3}
