from __future__ import annotations

from dataclasses import replace

import pytest

from dfmsd.data.pseudo import PseudoConfig
from dfmsd.reporting.caveats import baseline_warnings, run_warnings
from dfmsd.reporting.records import read_run
from dfmsd.reporting.results import ModelRow


@pytest.fixture
def config(distill_config, tmp_path):
    return distill_config(tmp_path / "config")


def log(rows: str, columns: str = "mask/p3,pearson/p3") -> str:
    return f"step,epoch,stage,{columns}\n{rows}"


def test_healthy_run_has_no_warnings(make_run, config):
    assert run_warnings(read_run(make_run()), config, [ModelRow("teacher", {"AP": 0.5})]) == []


def test_a_run_with_pseudo_labels(make_run, config):
    data = replace(config.data, unlabeled="more", pseudo=PseudoConfig("auto", "runs/big"))
    record, labeled = read_run(make_run()), replace(config, data=data)
    assert run_warnings(record, labeled, []) == []
    alone = labeled.without_teachers()
    assert run_warnings(record, alone, []) == [
        "No stage has a teacher, but runs/big labeled images for the run (data.pseudo)."
    ]
    held_out = replace(labeled, data=replace(data, holdout=0.2))
    assert run_warnings(record, held_out, [])[1:] == [
        "The scores for pseudo-labels come from the images that AP is measured on, so AP is slightly optimistic."
    ]
    assert baseline_warnings(record, record, labeled, alone) == []
    assert baseline_warnings(record, record, labeled, config.without_teachers()) == [
        "The two runs differ in `data` of the config, not only in the teachers."
    ]


def test_unreadable_config(make_run):
    assert run_warnings(read_run(make_run()), None, []) == [
        "This version of dfmsd cannot read config.yaml, so everything derived from it is missing."
    ]


def test_teacher_below_its_student(make_run, config):
    teachers = [ModelRow("A", {"AP": 0.4}), ModelRow("B", {"AP": 0.42}), ModelRow("C")]
    assert run_warnings(read_run(make_run(ap=0.41)), config, teachers) == [
        "A reaches 40.0 AP, no more than its student's 41.0."
    ]


def test_divergence(make_run, config):
    run = make_run()
    (run / "log.csv").write_text(log("0,0,1,nan,0.5\n", "mask/p3,pearson/p3"))
    assert run_warnings(read_run(run), config, []) == ["Not finite in some steps: mask/p3."]


def test_late_drop_of_ap(make_run, config):
    run = make_run(ap=0.28)
    (run / "epochs.csv").write_text("epoch,step,stage,AP\n0,1,1,0.1\n1,2,1,0.3\n2,3,1,\n3,4,1,0.28\n")
    assert run_warnings(read_run(run), config, []) == ["AP peaked at 30.0 after epoch 2 and ended at 28.0."]
    assert run_warnings(read_run(run), replace(config, deliver="best"), []) == [
        "The best epoch was delivered, selected on the images that AP is measured on, so AP is optimistic."
    ]


def test_a_run_that_ended_early(make_run, config):
    run = make_run()
    limited = replace(config, max_hours=1.0)
    (run / "log.csv").write_text(log("0,0,1,1.0,0.5\n1,1,1,1.0,0.5\n"))
    assert run_warnings(read_run(run), config, []) == []
    assert run_warnings(read_run(run), limited, []) == [
        "Training ended after epoch 2 of 3, without the lowest learning rates."
    ]
    (run / "log.csv").write_text(log("0,0,1,1.0,0.5\n1,1,1,1.0,0.5\n2,2,2,1.0,0.5\n"))
    assert run_warnings(read_run(run), limited, []) == []


def test_a_drop_that_the_delivered_average_does_not_have(make_run, config):
    run = make_run(ap=0.295)
    (run / "epochs.csv").write_text("epoch,step,stage,AP\n0,1,1,0.3\n1,2,1,0.2\n")
    assert run_warnings(read_run(run), replace(config, deliver="auto"), []) == []


def test_level_without_correlation(make_run, config):
    run = make_run()
    steps = "".join(f"{step},0,1,1.0,{0.01 * step / 10:.3f}\n" for step in range(20))
    (run / "log.csv").write_text(log(steps))
    assert run_warnings(read_run(run), config, []) == [
        "pearson/p3 ends stage 1 at 0.02: this level has hardly learned from the teacher."
    ]


@pytest.mark.parametrize(("rise", "count"), [(0.0, 1), (0.3, 0)])
def test_training_only_layers_learn_instead_of_the_student(make_run, config, rise, count):
    run = make_run()
    steps = "".join(f"{step},0,1,{1 - 0.03 * step},{0.4 + rise * step / 20}\n" for step in range(20))
    (run / "log.csv").write_text(log(steps, "T2.mask/p3,T2.pearson/p3"))
    warnings = run_warnings(read_run(run), config, [])
    assert len(warnings) == count
    assert all("T2.mask/p3 falls in stage 1 but T2.pearson/p3 does not rise" in warning for warning in warnings)


def test_held_out_images(make_run, config):
    config = replace(config, data=replace(config.data, holdout=0.2))
    assert "held-out" in run_warnings(read_run(make_run()), config, [])[0]


def test_baseline_must_differ_only_in_teachers(make_run, config):
    record, baseline = read_run(make_run("a")), read_run(make_run("b"))
    assert baseline_warnings(record, baseline, config, config.without_teachers()) == []
    other = replace(config.without_teachers(), seed=1, optim=replace(config.optim, lr=0.5))
    assert [line.split("`")[1] for line in baseline_warnings(record, baseline, config, other)] == ["optim", "seed"]
    assert "is not a baseline" in baseline_warnings(record, baseline, config, config)[0]
    short = read_run(make_run("c", stages=1))
    assert "not fair" in baseline_warnings(record, short, config, None)[0]


def test_a_baseline_lacks_the_epochs_without_labels(make_run, config):
    first, second = config.stages
    config = replace(config, stages=[replace(first, labels=False), second])
    record, baseline = read_run(make_run("a")), read_run(make_run("b", stages=1))
    extra = (record.trained_epochs or 0) - (baseline.trained_epochs or 0)
    config = replace(config, stages=[replace(config.stages[0], epochs=extra), second])
    [line] = baseline_warnings(record, baseline, config, config.without_teachers())
    assert line == f"The run was trained for {extra} more epochs than its baseline, without labels."
    assert baseline_warnings(record, record, config, config.without_teachers()) == []  # one of as many epochs
    longer = replace(config, stages=[replace(first, epochs=extra + 1, labels=False), second])
    assert "not fair" in baseline_warnings(record, baseline, longer, None)[0]
