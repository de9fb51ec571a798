"""One run that many tests of the engine read."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import NamedTuple

import pytest
from rich.console import Console
from tests.helpers.few_neurons import LOSS, FewNeurons, frozen

from dfmsd.distillation.stages import StageConfig
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.fit import Result
from dfmsd.engine.run import distill


class FinishedRun(NamedTuple):
    """A run and what it printed."""

    result: Result
    printed: str


@pytest.fixture(scope="session")
def two_stage_run(
    distill_config: Callable[..., DistillConfig], tmp_path_factory: pytest.TempPathFactory
) -> FinishedRun:
    """The run of `distill_config` without a terminal, logged at every second step, which is the last of an epoch."""
    printed = io.StringIO()
    console = Console(file=printed, width=200, markup=False, emoji=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FORCE_COLOR", raising=False)
        for name in ("fit", "module"):
            patch.setattr(f"dfmsd.engine.{name}.LOG_EVERY", 2)
        for name in ("fit", "run"):
            patch.setattr(f"dfmsd.engine.{name}.console", console)
        config = distill_config(tmp_path_factory.mktemp("two_stages") / "run")
        result = distill(config, allow_weak_teacher=True, check_images=1)
    return FinishedRun(result, printed.getvalue())


@pytest.fixture(scope="session")
def distilled(two_stage_run: FinishedRun) -> Result:
    """The result of `two_stage_run`."""
    return two_stage_run.result


@pytest.fixture
def small_task() -> DistillationTask:
    """A task of a few neurons with the stages of `distill_config` and balanced terms."""
    teachers = [frozen(3, name="first"), frozen(5, name="second")]
    stages = [StageConfig(2, "first"), StageConfig(1, "second")]
    return DistillationTask(FewNeurons(), stages, [[teacher] for teacher in teachers], LOSS, balance=0.5)
