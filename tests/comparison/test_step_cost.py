from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dfmsd.comparison import step_cost
from dfmsd.comparison.config import CompareConfig
from dfmsd.comparison.runs import build_tasks, plan_runs
from dfmsd.comparison.step_cost import limited_threads, measure_step_costs, peak_bytes
from dfmsd.data import CocoDataModule
from dfmsd.distillation import balance
from dfmsd.estimation.estimator import first_batch

MakeCompare = Callable[..., CompareConfig]


@pytest.mark.slow
def test_costs_cover_teachers_and_leave_student_unchanged(compare_config: MakeCompare, tmp_path: Path) -> None:
    config = compare_config(tmp_path, methods=["pkd", "dfmsd@T1+T2", "pkd@T1&T2"], epochs=3)
    config.data.image_size = 32
    data = CocoDataModule(config.data, digest=True)
    tasks, _ = build_tasks(config, plan_runs(config, config.parsed_methods(), "both")[0], data.class_names)
    student = tasks["none"][1].student
    before = [parameter.clone() for parameter in student.parameters()]
    costs = measure_step_costs(tasks, data, seconds=0.0)
    assert list(costs) == ["none", "pkd", "dfmsd@T1+T2", "pkd@T1&T2"]
    assert all(cost.step_ms > 0 for cost in costs.values())
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))
    teachers = [sum(p.nbytes for p in t.detector.parameters()) for t in tasks["dfmsd@T1+T2"][1].every_teacher]
    more = {name: cost.peak_bytes - costs["none"].peak_bytes for name, cost in costs.items()}
    assert more["pkd"] > teachers[1]
    assert more["dfmsd@T1+T2"] > sum(teachers)
    assert more["pkd@T1&T2"] > sum(teachers)
    for _, task in tasks.values():
        for teacher in task.every_teacher:
            assert teacher.cache is not None  # computed in the first step, found in the three others of two rounds
            assert (teacher.cache.hits, teacher.cache.misses) == (12, 4)


def test_cost_of_a_plan_is_the_mean_over_epochs(
    compare_config: MakeCompare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    config = compare_config(tmp_path, methods=["dfmsd@T1+T2"], epochs=3)
    data = CocoDataModule(config.data, digest=True)
    tasks, _ = build_tasks(config, plan_runs(config, config.parsed_methods(), "both")[0], data.class_names)
    assert [stage.epochs for stage in tasks["dfmsd@T1+T2"][0].stages] == [1, 2]
    plan = "dfmsd@T1+T2"
    plain = {("none", 0, False): 8.0, (plan, 0, False): 10.0, (plan, 1, False): 16.0}
    times = {**plain, (plan, 0, True): 15.0, (plan, 1, True): 26.0}  # of one step in ten
    monkeypatch.setattr(step_cost, "time_in_turns", lambda parts, seconds, wait: {key: times[key] for key in parts})
    monkeypatch.setattr(step_cost, "_peak_of", lambda step, target: 0)
    costs = step_cost.measure_step_costs(tasks, data)
    assert costs["none"].step_ms == 8.0
    assert costs[plan].step_ms == pytest.approx((10.5 + 2 * 17) / 3)
    task = tasks["none"][1]
    weights = sum(v.nbytes for part in (task.trainable.parameters(), task.trainable.buffers()) for v in part)
    assert costs["none"].peak_bytes == weights


@pytest.mark.parametrize("measures", [True, False])
def test_a_timed_step_measures_gradients_if_it_is_to(
    compare_config: MakeCompare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measures: bool
) -> None:
    config = compare_config(tmp_path, methods=["pkd"], epochs=3)
    config.data.image_size = 32
    data = CocoDataModule(config.data)
    tasks, _ = build_tasks(config, plan_runs(config, config.parsed_methods(), "both")[0], data.class_names)
    run, task = tasks["pkd"]
    (step,) = step_cost._steps(run, task, first_batch(data), torch.device("cpu"))
    calls: list[object] = []
    measure = balance.gradient_norm
    monkeypatch.setattr(balance, "gradient_norm", lambda *given: calls.append(given) or measure(*given))
    for _ in range(30):  # as many as a fast machine times
        step(measures=measures)
    assert len(calls) == (60 if measures else 0)  # of the task and of the terms


def test_peak_counts_simultaneous_tensors() -> None:
    def call() -> None:
        first = torch.ones(1000)  # 4,000 bytes
        second = first + 1  # 8,000 with the first
        del first
        third = torch.ones(500)  # 6,000 with the second
        del second, third

    assert peak_bytes(call) == pytest.approx(8000, abs=200)  # the allocator aligns


def test_threads_are_restored() -> None:
    former = torch.get_num_threads()
    with limited_threads(former + 1):
        assert torch.get_num_threads() == former + 1
    assert torch.get_num_threads() == former
