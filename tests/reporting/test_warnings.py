from __future__ import annotations

from dataclasses import replace

import pytest

from dfmsd.reporting.records import read_run
from dfmsd.reporting.scores import Contender
from dfmsd.reporting.warnings import against_baseline, warnings_of


@pytest.fixture
def plan(distill_config, tmp_path):
    return distill_config(tmp_path / "plan")


def log(rows: str, columns: str = "mask/p3,pearson/p3") -> str:
    return f"step,epoch,stage,{columns}\n{rows}"


def test_a_run_in_order_has_none(make_run, plan):
    assert warnings_of(read_run(make_run()), plan, [Contender("teacher", {"AP": 0.5})]) == []


def test_an_unreadable_config_is_told(make_run):
    assert warnings_of(read_run(make_run()), None, []) == [
        "This version of dfmsd cannot read config.yaml: what follows from it is left out."
    ]


def test_a_teacher_below_its_student_is_told(make_run, plan):
    teachers = [Contender("A", {"AP": 0.4}), Contender("B", {"AP": 0.42}), Contender("C")]
    assert warnings_of(read_run(make_run(ap=0.41)), plan, teachers) == [
        "A has 40.0 AP, no more than the 41.0 of its student."
    ]


def test_divergence_is_told(make_run, plan):
    run = make_run()
    (run / "log.csv").write_text(log("0,0,1,nan,0.5\n", "mask/p3,pearson/p3"))
    assert warnings_of(read_run(run), plan, []) == ["Not finite in some steps: mask/p3."]


def test_a_late_fall_is_told(make_run, plan):
    run = make_run()
    (run / "epochs.csv").write_text("epoch,step,stage,AP\n0,1,1,0.1\n1,2,1,0.3\n2,3,1,\n3,4,1,0.28\n")
    assert warnings_of(read_run(run), plan, []) == ["AP was 30.0 after epoch 2 and is 28.0 in the end."]
    assert warnings_of(read_run(run), replace(plan, deliver="best"), []) == [
        "Delivered is the best epoch, chosen on the images that AP is measured on: AP is optimistic."
    ]


def test_a_level_that_has_not_learnt_is_told(make_run, plan):
    run = make_run()
    steps = "".join(f"{step},0,1,1.0,{0.01 * step / 10:.3f}\n" for step in range(20))
    (run / "log.csv").write_text(log(steps))
    assert warnings_of(read_run(run), plan, []) == [
        "pearson/p3 ends stage 1 at 0.02: this level has learnt little from the teacher."
    ]


@pytest.mark.parametrize(("rise", "told"), [(0.0, 1), (0.3, 0)])
def test_layers_that_learn_instead_of_the_student_are_told(make_run, plan, rise, told):
    run = make_run()
    steps = "".join(f"{step},0,1,{1 - 0.03 * step},{0.4 + rise * step / 20}\n" for step in range(20))
    (run / "log.csv").write_text(log(steps, "T2.mask/p3,T2.pearson/p3"))
    warnings = warnings_of(read_run(run), plan, [])
    assert len(warnings) == told
    assert all("T2.mask/p3 falls in stage 1 but T2.pearson/p3 does not rise" in warning for warning in warnings)


def test_held_out_images_are_told(make_run, plan):
    plan = replace(plan, data=replace(plan.data, holdout=0.2))
    assert "put aside" in warnings_of(read_run(make_run()), plan, [])[0]


def test_runs_that_differ_in_the_teachers_alone_are_fair(make_run, plan):
    record, baseline = read_run(make_run("a")), read_run(make_run("b"))
    assert against_baseline(record, baseline, plan, plan.without_teachers()) == []
    other = replace(plan.without_teachers(), seed=1, optim=replace(plan.optim, lr=0.5))
    assert [line.split("`")[1] for line in against_baseline(record, baseline, plan, other)] == ["optim", "seed"]
    assert "is no baseline" in against_baseline(record, baseline, plan, plan)[0]
    short = read_run(make_run("c", stages=1))
    assert "not fair" in against_baseline(record, short, plan, None)[0]
