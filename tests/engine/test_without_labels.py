"""Runs that begin with a stage without labels."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from tests.helpers.runs import delivered, identical, in_checkpoint, kill, press_ctrl_c, quietly, rows, stopping

from dfmsd.data import DataConfig
from dfmsd.distillation.stages import NearConfig, StageConfig
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.fit import Result
from dfmsd.engine.near import near_recipe
from dfmsd.engine.optim import OptimConfig
from dfmsd.engine.preflight import print_preflight
from dfmsd.engine.run import build_task, check, distill
from dfmsd.errors import DfmsdError, Stopped
from dfmsd.runfolder import RunFolder

MakeDistill = Callable[..., DistillConfig]
CLASSES = ("square", "disc")
SLOW = [pytest.param(step, marks=pytest.mark.slow) for step in (1, 5)]


@pytest.fixture(scope="module")
def make(
    distill_config: MakeDistill,
    tiny_root: Path,
    tiny_teachers: tuple[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> MakeDistill:
    """Two epochs without labels and one with, of two steps each, of two labeled images and two others a batch."""
    folder = tmp_path_factory.mktemp("unlabeled")
    for image in (tiny_root / "val").iterdir():
        with Image.open(image) as file:  # turned: other images than those of the data set
            file.rotate(180).save(folder / image.name)

    def build(name: str, **values: Any) -> DistillConfig:
        data = DataConfig(str(tiny_root), image_size=64, batch_size=4, unlabeled=str(folder), unlabeled_ratio=0.5)
        stages = [StageConfig(2, tiny_teachers[0], labels=False), StageConfig(1, tiny_teachers[0])]
        defaults: dict[str, Any] = {"data": data, "stages": stages, "balance": 2.0, "deliver": "ema", "ema": 0.5}
        defaults |= {"optim": OptimConfig(warmup=1, weight_decay=0.5, schedule="restart"), "teacher_cache": "ram"}
        return distill_config(tmp_path_factory.mktemp("runs") / name, **{**defaults, **values})

    return build


@pytest.fixture(scope="module")
def whole(make: MakeDistill) -> Result:
    return quietly(make("whole"))


def test_the_log_has_the_terms_alone_until_the_labels_come(whole: Result) -> None:
    log = rows(whole.run / "log.csv")
    assert [row["stage"] for row in log] == ["1"] * 4 + ["2"] * 2
    own = [name for name in log[0] if name.startswith("task/") or name == "balance"]
    assert len(own) > 1
    for row in log:
        assert all((row[name] == "") == (row["stage"] == "1") for name in own)
        terms = sum(
            float(value) for name, value in row.items() if name.partition("/")[0] in ("mask", "sfa", "task") and value
        )
        assert float(row["loss"]) == pytest.approx(terms, rel=1e-3)


def test_only_epochs_with_labels_are_evaluated(whole: Result) -> None:
    assert [row["epoch"] for row in rows(whole.run / "epochs.csv")] == ["2"]


def test_neither_the_head_nor_its_average_moves_before_the_labels_come(
    make: MakeDistill, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make("head")
    start = {name: value.clone() for name, value in build_task(config, CLASSES).student.model.state_dict().items()}
    monkeypatch.setattr("dfmsd.engine.fit.StopOnInterrupt", stopping(4, press_ctrl_c))
    with pytest.raises(Stopped):
        quietly(config)
    for weights in (in_checkpoint(Path(config.out) / "last.ckpt"), delivered(config.out)):
        moved = {name for name, value in weights.items() if not torch.equal(value, start[name])}
        assert moved
        assert all(name.startswith("backbone.") for name in moved)


@pytest.mark.parametrize("step", [*SLOW[:1], 3, 4, *SLOW[1:]])
def test_a_killed_run_ends_with_the_same_bits(
    whole: Result, make: MakeDistill, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Within the stage, at the change of stages, and after it."""
    config = make("killed", checkpoint_every=1)
    monkeypatch.setattr("dfmsd.engine.fit.StopOnInterrupt", stopping(step, kill))
    with pytest.raises(RuntimeError, match="power"):
        quietly(config)
    monkeypatch.undo()
    quietly(config, resume=True)
    assert identical(delivered(config.out), delivered(whole.run))
    for table in ("log.csv", "epochs.csv"):
        assert rows(Path(config.out) / table) == rows(whole.run / table)


def test_the_best_epoch_is_one_with_labels(make: MakeDistill, monkeypatch: pytest.MonkeyPatch) -> None:
    result = quietly(make("best", deliver="best"))
    assert torch.load(RunFolder(result.run).best_checkpoint, weights_only=True)["epoch"] == 2
    with pytest.raises(DfmsdError, match=r"^deliver: best .* with eval_every 2 only the last of 1 is evaluated"):
        make("refused", deliver="best", eval_every=2)


def test_the_baseline_trains_for_the_epochs_with_labels_and_says_so(
    make: MakeDistill, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = Console(file=io.StringIO(), width=200)
    monkeypatch.setattr("dfmsd.engine.run.console", printed)
    config = make("baseline")
    assert config.without_teachers().stages == [StageConfig(1)]
    distill(config, no_distill=True)
    assert printed.file.getvalue().startswith("baseline: 1 epoch(s); the 2 without labels are left out")  # type: ignore[attr-defined]
    assert [row["epoch"] for row in rows(Path(config.out) / "log.csv")] == ["0", "0"]


def test_a_run_that_ends_before_the_labels_says_that_its_head_is_untrained(
    make: MakeDistill, capsys: pytest.CaptureFixture[str]
) -> None:
    result = quietly(make("short", max_hours=1e-9))
    said = " ".join(capsys.readouterr().err.split())
    assert "no stage with labels was reached, so the student's head is untrained" in said
    assert [row["epoch"] for row in rows(result.run / "epochs.csv")] == ["0"]


def test_the_pre_flight_compares_with_the_detectors_loss_where_there_is_one(make: MakeDistill) -> None:
    findings = check(make("check"), allow_weak_teacher=True, check_images=1)
    assert [term.stage for term in findings.terms if term.name == "task"] == [2]
    printed = Console(file=io.StringIO(), width=200)
    print_preflight(findings, printed)
    lines = [line.split() for line in printed.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    relative = {(line[1], line[3]): line[9] for line in lines if len(line) == 11 and line[3] in ("mask", "sfa", "task")}
    assert relative["1", "mask"] == relative["1", "sfa"] == "-"
    assert relative["2", "task"] == "1.00"


@pytest.mark.parametrize("loss", ["crosskd", [{"name": "pkd"}, {"name": "crosskd"}]])
def test_losses_on_predictions_are_refused(make: MakeDistill, loss: Any) -> None:
    data = replace(make("x").data, unlabeled=None)
    with pytest.raises(
        DfmsdError, match=r"^stages\.0\.labels: crosskd compares predictions.*stages\.0\.loss: dfmsd"
    ) as caught:
        make("x", loss=loss, data=data)
    assert "\n" not in str(caught.value)
    own = [replace(make("x").stages[0], loss={"name": "pkd"}), *make("x").stages[1:]]
    make("x", loss=loss, data=data, stages=own)


def test_a_near_teacher_of_a_stage_without_labels_has_them_itself(make: MakeDistill) -> None:
    for bridge in (False, True):
        near = NearConfig("resnet18", epochs=1, bridge=bridge, out="near")
        first, last = make("x").stages
        config = make("x", stages=[replace(first, near=near), last])
        recipe = near_recipe(config, config.stages[0])
        assert recipe.as_distillation().epochs_without_labels == []
