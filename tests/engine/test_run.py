from __future__ import annotations

import json
import logging
import os
import random
import re
import shutil
import signal
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partialmethod
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.testing import assert_allclose
from PIL import Image
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.helpers.fixtures import TINY_BACKBONE
from tests.helpers.runs import (
    delivered,
    identical,
    in_checkpoint,
    kill,
    press_ctrl_c,
    quietly,
    rows,
    stopping,
)
from torch.testing import assert_close

from dfmsd.data import CocoDataModule, DataConfig
from dfmsd.detectors import load_detector
from dfmsd.distillation.balance import DEFAULT_BALANCE
from dfmsd.distillation.stages import StageConfig, learning_rate_factor
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine import callbacks
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.configfile import read_config
from dfmsd.engine.fit import Result
from dfmsd.engine.interrupt import StopOnInterrupt
from dfmsd.engine.optim import OptimConfig
from dfmsd.engine.run import build_task, distill, train
from dfmsd.engine.saved_config import same_run, write_config
from dfmsd.errors import INTERRUPTED, PREEMPTED, DfmsdError, Stopped
from dfmsd.evaluation.evaluate import evaluate

MakeDistill = Callable[..., DistillConfig]
MakeTrain = Callable[..., TrainConfig]

FILES = {
    "config.yaml",
    "environment.json",
    "metrics.json",
    "log.csv",
    "epochs.csv",
    "last.ckpt",
    "previous.ckpt",
    "basis.json",
    "best.ckpt",
    "student.safetensors",
    "student.json",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def balanced(distill_config: MakeDistill, tiny_teachers: tuple[str, str], runs: Path) -> Result:
    """A run of one epoch, whose loss is balanced as it is by default."""
    stages = [StageConfig(epochs=1, teacher=tiny_teachers[0])]
    return quietly(distill_config(runs / "balanced", stages=stages, balance=DEFAULT_BALANCE))


def test_the_balance_falls_along_half_a_cosine_over_all_stages(
    distill_config: MakeDistill, tiny_teachers: tuple[str, str], tmp_path: Path
) -> None:
    stages = [StageConfig(epochs=1, teacher=teacher) for teacher in tiny_teachers]
    optim = OptimConfig("adamw", 1e-12)  # so that both runs measure the same gradients
    factors = {}
    for schedule in ("constant", "cosine"):
        result = quietly(
            distill_config(tmp_path / schedule, stages=stages, balance=2.0, balance_schedule=schedule, optim=optim)
        )
        factors[schedule] = np.array([float(row["balance"]) for row in rows(result.run / "log.csv")])
    steps = len(factors["constant"])
    assert steps >= 4
    shares = (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2
    assert_allclose(factors["cosine"] / factors["constant"], shares, rtol=1e-4)


def test_the_run_folder_is_complete_and_consistent(
    distilled: Result, distill_config: MakeDistill, tiny_teachers: tuple[str, str]
) -> None:
    run = distilled.run
    assert {path.name for path in run.iterdir() if path.is_file()} == FILES
    assert same_run(distill_config(run), run)
    assert read_config(DistillConfig, run / "config.yaml").precision == "32"  # on a CPU, by the default `auto`
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics == distilled.metrics
    assert list(metrics) == ["AP", "AP50", "AP75", "APs", "APm", "APl", "per_class"]
    assert list(metrics["per_class"]) == ["square", "disc"]
    values = [value for name, value in metrics.items() if name != "per_class"] + list(metrics["per_class"].values())
    assert all(value is None or 0 <= value <= 1 for value in values)
    assert isinstance(metrics["AP"], float)
    environment = json.loads((run / "environment.json").read_text())
    counts = [sum(p.numel() for p in load_detector(folder).parameters()) for folder in (run, *tiny_teachers)]
    assert environment["parameters"]["student"] == counts[0]
    assert environment["parameters"]["teachers"] == counts[1] + counts[2]
    assert environment["packages"]["torch"] == version("torch")


def test_every_step_is_logged_with_its_named_losses(distilled: Result) -> None:
    log = rows(distilled.run / "log.csv")
    assert [(row["step"], row["epoch"], row["stage"]) for row in log] == [
        ("0", "0", "1"),
        ("1", "0", "1"),
        ("2", "1", "1"),
        ("3", "1", "1"),
        ("4", "2", "2"),
        ("5", "2", "2"),
    ]
    names = [name for name in log[0] if "/" in name]
    assert {name.partition("/")[0] for name in names} == {"task", "mask", "sfa", "pearson"}
    assert {f"{kind}/p{level}" for kind in ("mask", "sfa", "pearson") for level in (3, 4, 5, 6)} <= set(names)
    for row in log:
        parts = [float(row[name]) for name in names if row[name] and not name.startswith("pearson/")]
        assert sum(parts) == pytest.approx(float(row["loss"]), rel=1e-4)
        assert all(-1 <= float(row[name]) <= 1 for name in names if row[name] and name.startswith("pearson/"))
    expected = [2e-2 * (4 / 8) ** 0.5 * learning_rate_factor(step, [2, 1], 2, warmup=1) for step in range(6)]
    assert [float(row["lr"]) for row in log] == pytest.approx(expected, rel=1e-5)


def test_every_epoch_is_evaluated_and_the_last_one_is_delivered(distilled: Result) -> None:
    epochs = rows(distilled.run / "epochs.csv")
    assert [(row["epoch"], row["step"], row["stage"]) for row in epochs] == [
        ("0", "2", "1"),
        ("1", "4", "1"),
        ("2", "6", "2"),
    ]
    assert float(epochs[-1]["AP"]) == distilled.metrics["AP"]


def test_the_delivered_file_is_the_student_of_the_last_checkpoint(distilled: Result, tiny_root: Path) -> None:
    weights = delivered(distilled.run)
    assert identical(weights, in_checkpoint(distilled.run / "last.ckpt"))
    assert torch.load(distilled.run / "last.ckpt", weights_only=True)["epoch"] == 2
    loaded = load_detector(distilled.run)
    assert not distilled.student.training
    distilled.student.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # as the loaded one is
    images = torch.rand(2, 3, 64, 64)
    for ours, theirs in zip(
        distilled.student.detect(images, [(64, 64)] * 2), loaded.detect(images, [(64, 64)] * 2), strict=True
    ):
        assert all(torch.equal(ours[key], theirs[key]) for key in ("boxes", "scores", "labels"))  # type: ignore[literal-required]
    data = CocoDataModule(DataConfig(str(tiny_root), image_size=64, batch_size=4))
    assert evaluate(loaded, data.val_dataloader()) == distilled.metrics


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_a_checkpoint_with_balanced_terms_is_the_student(balanced: Result, name: str) -> None:
    loaded = load_detector(balanced.run / name)
    images = [Image.new("RGB", (64, 48), "gray")]
    (expected,), (found,) = (detector.predict(images, score=0.0) for detector in (balanced.student, loaded))
    assert len(found.scores) > 0
    assert_close(found.boxes, expected.boxes)
    assert_close(found.scores, expected.scores)


def test_no_checkpoint_holds_a_teacher(distilled: Result, tiny_teachers: tuple[str, str]) -> None:
    teachers = [value for folder in tiny_teachers for value in delivered(folder).values() if value.ndim == 4]
    assert teachers
    for path in (distilled.run / "last.ckpt", distilled.run / "best.ckpt"):
        content = torch.load(path, weights_only=True)
        state = content["state_dict"]
        assert all(name.startswith(("task.trainable.student.", "task.trainable.criteria.")) for name in state)
        for teacher in teachers:
            assert not any(v.shape == teacher.shape and torch.equal(v, teacher) for v in state.values())
        moments = content["optimizer_states"][0]["state"]
        environment = json.loads((distilled.run / "environment.json").read_text())["parameters"]
        trained = sum(entry["exp_avg"].numel() for entry in moments.values())
        assert trained <= environment["student"] + environment["layers"]


def process_state() -> list[Any]:
    """Everything that a library call must not change in its process."""
    levels = [logging.getLogger(name).level for name in (None, "dfmsd", "pytorch_lightning.utilities.rank_zero")]
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)]
    numpy = np.random.get_state()
    return [
        torch.get_rng_state().tolist(),
        random.getstate(),
        (numpy[0], numpy[1].tolist(), *numpy[2:]),  # type: ignore[index]
        {name: value for name, value in os.environ.items() if name.startswith("PL_")},
        list(warnings.filters),
        levels,
        logging.root.manager.disable,
        handlers,
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        torch.get_num_threads(),
    ]


def test_a_run_changes_neither_its_teachers_nor_its_process(
    tiny_teachers: tuple[str, str], distill_config: MakeDistill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (load_detector(folder) for folder in tiny_teachers)
    second.train()
    first.model.backbone.body.requires_grad_(False)
    flags = [[p.requires_grad for p in t.parameters()] for t in (first, second)]
    weights = [{name: value.clone() for name, value in t.state_dict().items()} for t in (first, second)]
    stages = [StageConfig(epochs=1, teacher="one"), StageConfig(epochs=1, teacher="two")]
    monkeypatch.setattr("dfmsd.engine.allocator.keep_freed_memory", lambda: pytest.fail("changed the allocator"))
    before = process_state()
    quietly(distill_config(tmp_path / "run", stages=stages), teachers={"one": first, "two": second})
    assert process_state() == before
    for teacher, former in zip((first, second), weights, strict=True):
        assert identical(former, teacher.state_dict())
        assert all(p.grad is None for p in teacher.parameters())
    assert not any(module.training for module in first.modules())
    assert all(module.training for module in second.modules())
    assert [[p.requires_grad for p in t.parameters()] for t in (first, second)] == flags


def test_the_baseline_is_plain_training_to_the_bit(
    distilled: Result, distill_config: MakeDistill, train_config: MakeTrain, runs: Path
) -> None:
    baseline = quietly(distill_config(runs / "baseline"), no_distill=True)
    plain = train(train_config(runs / "plain", epochs=3))
    assert identical(delivered(baseline.run), delivered(plain.run))
    assert baseline.metrics == plain.metrics
    assert not identical(delivered(baseline.run), delivered(distilled.run))
    names = rows(baseline.run / "log.csv")[0]
    assert all(name.startswith("task/") for name in names if "/" in name)
    assert read_config(DistillConfig, baseline.run / "config.yaml").stages[0].teacher is None
    wanted = train_config(runs / "plain", epochs=3)
    assert read_config(TrainConfig, plain.run / "config.yaml") == replace(wanted, precision=wanted.chosen_precision)


def test_weights_follow_from_the_seed(distill_config: MakeDistill, tmp_path: Path) -> None:
    tasks = [build_task(distill_config(tmp_path, seed=seed), ("square", "disc")) for seed in (5, 5, 6)]
    first, again, other = (task.state_dict() for task in tasks)
    assert identical(first, again)
    assert not identical(first, other)


def test_an_interrupted_run_delivers_its_student_and_resumes_to_the_same_bits(
    distilled: Result,
    distill_config: MakeDistill,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = distill_config(runs / "interrupted")
    run = Path(config.out)
    in_second_epoch = stopping(3, press_ctrl_c)
    monkeypatch.setattr("dfmsd.engine.fit.StopOnInterrupt", in_second_epoch)
    with pytest.raises(Stopped) as stopped:
        quietly(config)
    assert isinstance(stopped.value, KeyboardInterrupt)  # which ends a user's loop over runs
    assert not (run / "metrics.json").exists()
    said = " ".join(capsys.readouterr().err.split())
    assert "interrupted: " in said
    assert "is the student so far, not evaluated; resume it to continue from step 3" in said
    assert stopped.value.status == INTERRUPTED
    assert identical(delivered(run), in_checkpoint(run / "last.ckpt"))
    assert [row["step"] for row in rows(run / "log.csv")] == ["0", "1", "2"]
    with pytest.raises(DfmsdError, match="already holds a run; pass `resume`, `overwrite` or another `out`"):
        quietly(config)

    monkeypatch.undo()
    resumed = quietly(config, resume=True)
    assert resumed.metrics == distilled.metrics
    assert identical(delivered(run), delivered(distilled.run))
    assert rows(run / "log.csv") == rows(distilled.run / "log.csv")
    assert rows(run / "epochs.csv") == rows(distilled.run / "epochs.csv")
    assert {path.name for path in run.iterdir() if path.is_file()} == FILES


@pytest.mark.slow
def test_unlabeled_images_change_the_student_and_are_the_same_in_a_resumed_run(
    distilled: Result, distill_config: MakeDistill, tiny_root: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = runs / "more"
    folder.mkdir()
    for image in (tiny_root / "val").iterdir():
        with Image.open(image) as file:  # turned: other images than those of the data set
            file.rotate(180).save(folder / image.name)
    data = DataConfig(str(tiny_root), image_size=64, batch_size=4, unlabeled=str(folder), unlabeled_ratio=0.5)
    settings: dict[str, Any] = {"data": data, "teacher_cache": "ram", "eval_every": 9}
    whole = quietly(distill_config(runs / "unlabeled", **settings))
    assert len(rows(whole.run / "log.csv")) == len(rows(distilled.run / "log.csv"))
    assert not identical(delivered(whole.run), delivered(distilled.run))

    config = distill_config(runs / "unlabeled_stopped", **settings)
    monkeypatch.setattr("dfmsd.engine.fit.StopOnInterrupt", stopping(3, press_ctrl_c))
    with pytest.raises(Stopped):
        quietly(config)
    monkeypatch.undo()
    quietly(config, resume=True)
    assert identical(delivered(Path(config.out)), delivered(whole.run))


@pytest.mark.slow
def test_a_killed_run_is_resumed_in_a_stage_with_a_restarted_schedule(
    distill_config: MakeDistill, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restart = OptimConfig(warmup=1, schedule="restart")
    whole = quietly(distill_config(runs / "whole", optim=restart, balance=0.5))
    config = distill_config(runs / "killed", optim=restart, balance=0.5)
    run = Path(config.out)
    monkeypatch.setattr("dfmsd.engine.fit.StopOnInterrupt", stopping(5, kill))  # in the first epoch of the second stage
    with pytest.raises(RuntimeError, match="power"):
        quietly(config)
    assert len(rows(run / "log.csv")) == 5
    monkeypatch.undo()
    resumed = quietly(config, resume=True)
    assert identical(delivered(run), delivered(whole.run))
    assert resumed.metrics == whole.metrics
    assert rows(run / "log.csv") == rows(whole.run / "log.csv")
    assert rows(run / "epochs.csv") == rows(whole.run / "epochs.csv")
    assert all(float(row["balance"]) > 0 for row in rows(run / "log.csv"))
    rates = [float(row["lr"]) for row in rows(run / "log.csv")]
    assert rates[0] == rates[4] == 0.001
    assert rates[3] < 0.001


@pytest.mark.parametrize(
    ("number", "at", "quality"),
    [(signal.SIGTERM, 1, "not evaluated"), (signal.SIGUSR1, 2, r"AP \d\.\d"), (signal.SIGHUP, 1, "not evaluated")],
)
def test_a_preempted_run_is_saved_and_can_be_resumed(
    train_config: MakeTrain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    number: int,
    at: int,
    quality: str,
) -> None:
    """In the middle of an epoch, and at its last step, which is evaluated and saved before the run ends."""
    former = signal.signal(number, signal.SIG_DFL)  # nohup, under which the tests may run, ignores SIGHUP
    request.addfinalizer(lambda: signal.signal(number, former))
    config = train_config(tmp_path / "run", epochs=2)
    monkeypatch.setattr("dfmsd.engine.fit.StopOnInterrupt", stopping(at, lambda: signal.raise_signal(number)))
    with pytest.raises(Stopped) as stopped:
        train(config)
    assert stopped.value.status == PREEMPTED
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(f"is the student so far, {quality}; resume it to continue from step {at}", said)
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == at
    monkeypatch.undo()
    train(config, resume=True)
    assert [row["step"] for row in rows(tmp_path / "run" / "log.csv")] == ["0", "1", "2", "3"]
    assert [row["epoch"] for row in rows(tmp_path / "run" / "epochs.csv")] == ["0", "1"]
    curves = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in curves.Scalars("epoch")] == [(1, 0), (3, 1)]
    assert [event.step for event in curves.Scalars("AP")] == [1, 3]


def test_an_ignored_sighup_stays_ignored(
    train_config: MakeTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``nohup`` starts a command."""
    monkeypatch.setattr("dfmsd.engine.fit.StopOnInterrupt", stopping(1, lambda: signal.raise_signal(signal.SIGHUP)))
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        train(train_config(tmp_path / "run"))
    finally:
        assert signal.signal(signal.SIGHUP, former) is signal.SIG_IGN


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    train_config: MakeTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = train_config(tmp_path / "run")
    monkeypatch.setattr("dfmsd.engine.fit.StopOnInterrupt", stopping(1, kill))
    with pytest.raises(RuntimeError, match="power"):
        train(config)
    monkeypatch.undo()
    train(config, resume=True)
    assert [row["step"] for row in rows(tmp_path / "run" / "log.csv")] == ["0", "1"]


def test_the_best_epoch_is_delivered_on_request_and_the_last_one_stays_resumable(
    train_config: MakeTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aps = iter([0.5, 0.25])
    monkeypatch.setattr(
        callbacks, "evaluate", lambda *args: {**evaluate(*args), "AP": next(aps)}
    )  # the second of two evaluations is the worse one
    result = train(train_config(tmp_path / "run", epochs=3, eval_every=2, deliver="best"))
    best, last = in_checkpoint(tmp_path / "run" / "best.ckpt"), in_checkpoint(tmp_path / "run" / "last.ckpt")
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["epoch"] == 2
    assert torch.load(tmp_path / "run" / "best.ckpt", weights_only=True)["epoch"] == 1
    assert not identical(best, last)
    assert identical(delivered(result.run), best)
    assert [row["epoch"] for row in rows(result.run / "epochs.csv")] == ["1", "2"]
    data = CocoDataModule(train_config(tmp_path).data)
    assert evaluate(result.student, data.val_dataloader()) == result.metrics


def test_a_run_that_was_moved_still_knows_its_best_epoch(
    train_config: MakeTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aps = iter([0.5, 0.25])
    monkeypatch.setattr(callbacks, "evaluate", lambda *args: {**evaluate(*args), "AP": next(aps)})
    settings: Any = {"epochs": 2, "eval_every": 1, "deliver": "best"}
    monkeypatch.setattr("dfmsd.engine.fit.StopOnInterrupt", stopping(3, kill))
    with pytest.raises(RuntimeError, match="power"):
        train(train_config(tmp_path / "run", **settings))
    monkeypatch.setattr("dfmsd.engine.fit.StopOnInterrupt", StopOnInterrupt)
    (tmp_path / "run").rename(tmp_path / "moved")
    train(train_config(tmp_path / "moved", **settings), resume=True)
    assert torch.load(tmp_path / "moved" / "best.ckpt", weights_only=True)["epoch"] == 0
    assert not (tmp_path / "run").exists()


def test_an_exploding_loss_ends_the_run(train_config: MakeTrain, tmp_path: Path) -> None:
    config = train_config(tmp_path / "run", epochs=2, optim=OptimConfig(lr=1e30, warmup=0, clip=0))
    before = process_state()
    with pytest.raises(DfmsdError, match=r"step 1 \(stage 1\): task/.* is not finite; lower optim.lr"):
        train(config)
    assert process_state() == before
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert not (tmp_path / "run" / "last.ckpt").exists()
    assert len(rows(tmp_path / "run" / "log.csv")) == 2
    failure = json.loads((tmp_path / "run" / "failure" / "step-1.json").read_text())
    assert (failure["step"], failure["epoch"], failure["stage"]) == (1, 0, 1)
    assert len(set(failure["image_ids"])) == 4
    assert failure["values"]["loss"] == "nan"


def test_bad_steps_are_skipped_and_counted_across_a_resume(
    train_config: MakeTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Poisoning(StopOnInterrupt):
        def on_after_backward(self, trainer: Any, module: Any, *_: Any) -> None:
            if trainer.global_step in (1, 3, 4):
                next(module.parameters()).grad.fill_(torch.nan)

    config = train_config(tmp_path / "run", epochs=3, skip_nonfinite=2)
    monkeypatch.setattr("dfmsd.engine.fit.StopOnInterrupt", Poisoning)
    with pytest.raises(DfmsdError, match=r"step 4 \(stage 1\): gradient is not finite; .* 2 such steps were skipped"):
        train(config)
    run = tmp_path / "run"
    assert {path.name for path in (run / "failure").iterdir()} == {"step-1.json", "step-3.json", "step-4.json"}
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 4
    assert all(value.isfinite().all() for value in in_checkpoint(run / "last.ckpt").values())
    with pytest.raises(DfmsdError, match=r"step 4 .* 2 such steps were skipped before"):
        train(config, resume=True)
    train(train_config(run, epochs=3, skip_nonfinite=3), resume=True)
    assert [row["step"] for row in rows(run / "log.csv")] == [str(step) for step in range(6)]


def test_a_further_process_neither_checks_nor_writes_the_folder(
    train_config: MakeTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_config(train_config(run), run)
    written = (run / "config.yaml").stat().st_mtime_ns
    for module in ("run", "fit", "folder"):
        monkeypatch.setattr(f"dfmsd.engine.{module}.is_first_process", lambda: False)
    train(train_config(run), overwrite=True)
    assert (run / "config.yaml").stat().st_mtime_ns == written
    assert not (run / "metrics.json").exists()
    assert not (run / "environment.json").exists()


@pytest.mark.slow
def test_a_run_on_several_losses_at_once_logs_the_terms_of_each(
    distill_config: MakeDistill, tiny_teachers: tuple[str, str], tmp_path: Path
) -> None:
    first, second = tiny_teachers
    stages = [StageConfig(1, first, [{"name": "fgd"}, {"name": "cwd"}]), StageConfig(1, second)]
    losses = [{"name": "pkd"}, {"name": "mgd", "ratio": 0.5}]
    config = distill_config(tmp_path / "run", stages=stages, loss=losses, eval_every=9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dfmsd.engine.fit.StopOnInterrupt", stopping(3, kill))
        with pytest.raises(RuntimeError, match="the power went off"):
            quietly(config)
    result = quietly(config, resume=True)
    assert same_run(config, result.run)
    log = rows(result.run / "log.csv")
    terms = [{name.partition("/")[0] for name, value in row.items() if "/" in name and value} for row in log]
    assert [row["stage"] for row in log] == ["1", "1", "2", "2"]
    assert terms[0] == terms[1] == {"task", "fg", "bg", "attention", "relation", "cwd", "pearson"}
    assert terms[2] == terms[3] == {"task", "pkd", "mgd", "pearson"}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_works_with_a_balance_and_resuming(
    distill_config: MakeDistill, tiny_root: Path, tiny_teachers: tuple[str, str], tmp_path: Path
) -> None:
    """20 steps are measured and four are not; the second stage measures again what the first one compiled."""
    data = DataConfig(str(tiny_root), image_size=64, batch_size=2)
    stages = [StageConfig(6, tiny_teachers[0]), StageConfig(1, tiny_teachers[0])]
    settings = {"data": data, "stages": stages, "loss": {"name": "fitnet"}, "balance": 0.5, "eval_every": 7}
    plain, config = (distill_config(tmp_path / str(fast), compile=fast, **settings) for fast in (False, True))
    quietly(plain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dfmsd.engine.fit.StopOnInterrupt", stopping(22, press_ctrl_c))
        with pytest.raises(Stopped):
            quietly(config)
    quietly(config, resume=True)
    wanted, found = ([float(row["loss"]) for row in rows(Path(run.out) / "log.csv")] for run in (plain, config))
    assert found == pytest.approx(wanted, rel=1e-2)


@pytest.mark.slow
def test_a_compiled_run_differs_in_nothing_but_the_config(
    distill_config: MakeDistill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfmsd.engine.run.check_compiler", lambda _device: None)
    monkeypatch.setattr(DistillationTask, "compile_parts", partialmethod(DistillationTask.compile_parts, "eager"))
    stages = [StageConfig(1, distill_config(tmp_path).stages[0].teacher)]
    runs = [
        quietly(distill_config(tmp_path / str(fast), compile=fast, stages=stages, deliver="ema", inherit="auto"))
        for fast in (False, True)
    ]
    first, second = (torch.load(each.run / "last.ckpt", weights_only=True)["state_dict"] for each in runs)
    assert list(second) == list(first)
    assert_close(second, first)
    logs = [[float(row["loss"]) for row in rows(each.run / "log.csv")] for each in runs]
    assert logs[1] == pytest.approx(logs[0])
    assert runs[1].metrics == runs[0].metrics
    assert not any("forward" in vars(module) for module in runs[1].student.modules())


def test_compile_without_a_compiler_is_refused_before_anything_else(
    distill_config: MakeDistill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise RuntimeError("no g++")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(DfmsdError, match=r"^compile: torch.compile needs .* \(no g\+\+\); install them"):
        distill(distill_config(tmp_path / "run", compile=True))
    assert not (tmp_path / "run").exists()


def test_frozen_layers_are_no_reason_for_a_warning(distill_config: MakeDistill, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model(TINY_BACKBONE).state_dict(), weights)
    config = distill_config(tmp_path / "run", stages=[StageConfig(1)])
    student = replace(config.student, pretrained=str(weights), frozen_stride=4)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*eval mode")
        distill(replace(config, student=student))
