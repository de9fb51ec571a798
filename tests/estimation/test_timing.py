from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dfmsd.data import CocoDataModule
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine.config import DistillConfig
from dfmsd.estimation.estimator import first_batch
from dfmsd.estimation.timing import step_parts, time_in_turns


class Clock:
    """Clock that only advances while parts run."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def part(self, name: str, *seconds: float) -> Callable[[], None]:
        """Use these times, repeating the last one."""
        remaining = list(seconds)

        def run() -> None:
            self.order.append(name)
            self.now += remaining.pop(0) if len(remaining) > 1 else remaining[0]

        return run


def test_parts_take_turns_and_the_first_round_is_a_warm_up() -> None:
    clock = Clock()
    parts = {"a": clock.part("a", 9.0, 1.0, 3.0, 1.0), "b": clock.part("b", 0.5)}
    assert time_in_turns(parts, seconds=18, clock=clock) == {"a": 1000.0, "b": 500.0}
    assert clock.order == ["a", "b"] * 5  # 9.5 + 1.5 + 3.5 + 1.5 + 1.5 = 17.5: no time for a sixth of 1.5


def test_at_least_one_round_is_timed() -> None:
    clock = Clock()
    assert time_in_turns({"a": clock.part("a", 100.0, 70.0)}, seconds=10.0, clock=clock) == {"a": 70_000.0}
    assert clock.order == ["a", "a"]


def test_device_is_synchronized_before_and_after_a_part() -> None:
    clock = Clock()
    time_in_turns({"a": clock.part("a", 1.0)}, 0.0, clock=clock, wait=lambda: clock.order.append("wait"))
    assert clock.order == ["wait", "a", "wait"] * 2


@pytest.mark.parametrize("kind", [None, "ram", "disk"])
def test_parts_of_a_run_do_not_change_the_weights(
    kind: str | None,
    task: DistillationTask,
    distill_config: Callable[..., DistillConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DFMSD_CACHE", str(tmp_path / "cache"))
    config = distill_config(tmp_path / "run", teacher_cache=kind)
    data = CocoDataModule(config.data)
    task.train()
    before = [weight.detach().clone() for weight in task.parameters()]
    with step_parts(config, task, data, first_batch(data), torch.device("cpu")) as parts:
        for run in parts.values():
            run()
            run()
    of_teacher = ["teacher", "loss", *(["stored", "cached"] if kind else []), "update"]
    stages = [f"{stage}/{part}" for stage in (1, 2) for part in of_teacher]
    assert list(parts) == ["student", *stages, "load", "decode", "detect"]
    assert all(torch.equal(old, new) for old, new in zip(before, task.parameters(), strict=True))
    assert all(weight.grad is None for weight in task.parameters())
    assert not (tmp_path / "run").exists()
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_cached_features_are_not_computed_and_stored_ones_are(
    task: DistillationTask, distill_config: Callable[..., DistillConfig], tmp_path: Path
) -> None:
    config = distill_config(tmp_path / "run", teacher_cache="ram")
    data = CocoDataModule(config.data)
    task.train()
    calls: list[int] = []
    detector = task.teachers[0][0].detector
    compute = detector.features
    detector.features = lambda images: (calls.append(len(images)), compute(images))[1]  # type: ignore[method-assign]
    with step_parts(config, task, data, first_batch(data), torch.device("cpu")) as parts:
        calls.clear()
        for _ in range(3):
            parts["1/cached"]()
        assert calls == [1, 1, 1, 1]  # the warm-up fills the cache, image by image
        for _ in range(2):
            parts["1/stored"]()
        assert calls == [1] * 12
