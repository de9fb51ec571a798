"""Runs with several teachers in one stage."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dfmsd.data import DataConfig
from dfmsd.distillation.balance import is_balance
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.fit import Result
from dfmsd.engine.interrupt import StopOnInterrupt
from dfmsd.engine.run import check, distill
from dfmsd.engine.saved_config import same_run
from dfmsd.reporting import run_report

MakeDistill = Callable[..., DistillConfig]
Make = Callable[[str], DistillConfig]


@pytest.fixture(scope="module", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFMSD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def make(
    distill_config: MakeDistill,
    tiny_root: Path,
    tiny_teachers: tuple[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Make:
    """One teacher for an epoch, then both for two; features are cached on disk, terms are balanced."""
    folder = tmp_path_factory.mktemp("runs")
    first, second = tiny_teachers

    def build(name: str) -> DistillConfig:
        return distill_config(
            folder / name,
            data=DataConfig(str(tiny_root), image_size=64, batch_size=4, flip=0.0),
            stages=[StageConfig(1, first), StageConfig(2, [first, second])],
            balance=0.5,
            teacher_cache="disk",
            eval_every=9,
        )

    return build


@pytest.fixture(scope="module")
def distilled(make: Make) -> Result:
    return distill(make("whole"), allow_weak_teacher=True, check_images=1)


def rows(result: Result) -> list[dict[str, str]]:
    with (result.run / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_run_folder_numbers_the_teachers(distilled: Result, make: Make) -> None:
    log = rows(distilled)
    assert [row["stage"] for row in log] == ["1", "1", "2", "2", "2", "2"]
    alone = {f"{term}/p{level}" for term in ("mask", "sfa", "pearson") for level in (3, 4, 5, 6)}
    together = {f"T{number}.{name}" for number in (1, 2) for name in alone}
    for row in log:
        wanted, others = (alone, together) if row["stage"] == "1" else (together, alone)
        assert all(row[name] for name in wanted)
        assert not any(row[name] for name in others)
        parts = [float(value) for name, value in row.items() if "/" in name and not is_diagnostic(name) and value]
        assert sum(parts) == pytest.approx(float(row["loss"]), rel=1e-4)
    factors = {name for name in log[0] if is_balance(name)}
    assert factors == {"balance", "T1.balance", "T2.balance"}
    assert same_run(make("whole"), distilled.run)
    names = torch.load(distilled.run / "last.ckpt", weights_only=True)["state_dict"]
    layers = {name.split(".")[3] for name in names if name.startswith("task.trainable.criteria.")}
    assert layers == {"0", "1", "1_T2"}
    report = run_report(distilled.run).read_text()
    assert all(text in report for text in ("T1.mask", "T2.sfa", "T2.p3"))


def is_diagnostic(name: str) -> bool:
    return "pearson" in name or is_balance(name)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(distilled: Result, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killing(StopOnInterrupt):
        def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
            if trainer.global_step == 5:  # in the last epoch
                raise RuntimeError("the power went off")

    with monkeypatch.context() as patch:
        patch.setattr("dfmsd.engine.fit.StopOnInterrupt", Killing)
        with pytest.raises(RuntimeError, match="power"):
            distill(make("killed"), allow_weak_teacher=True, check_images=1)
    resumed = distill(make("killed"), resume=True)
    ours, theirs = (load_file(result.run / "student.safetensors") for result in (resumed, distilled))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert resumed.metrics == distilled.metrics
    assert rows(resumed) == rows(distilled)


def test_the_preflight_names_each_teacher_with_its_number(make: Make, tiny_teachers: tuple[str, str]) -> None:
    found = check(make("checked"), allow_weak_teacher=True, check_images=1)
    first, second = tiny_teachers
    assert list(found.pairs) == [f"stage 1: {first}", f"stage 2: T1, {first}", f"stage 2: T2, {second}"]
    assert "p3 (/8, 16) <- p3 (/8, 32)" in found.pairs[f"stage 2: T1, {first}"]
    assert "p3 (/8, 16) <- p2 (/4, 16)" in found.pairs[f"stage 2: T2, {second}"]
    assert set(found.ap) == {"student", first, second}
    assert [term.name for term in found.terms if term.stage == 2] == ["task", "T1.mask", "T1.sfa", "T2.mask", "T2.sfa"]
