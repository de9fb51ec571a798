"""A run that is killed at any moment and resumed ends with the bits of one that was not."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dfmsd.data import DataConfig
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine import callbacks, checkpoint
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.interrupt import StopOnInterrupt
from dfmsd.engine.optim import OptimConfig
from dfmsd.engine.run import distill
from dfmsd.engine.saved_config import write_config
from dfmsd.utils.lock import LOCK, WRITER

MakeDistill = Callable[..., DistillConfig]
TABLES = ("log.csv", "epochs.csv", "metrics.json")
RESULTS = (*TABLES, "student.safetensors", "last.ckpt", "best.ckpt")
LINK = os.link  # which one test replaces
STEPS, EPOCH = 12, 4
"""Optimiser steps of the whole run and of an epoch."""


@pytest.fixture(scope="module")
def killable(distill_config: MakeDistill, tiny_root: Path) -> MakeDistill:
    """Two stages of two epochs and one, four steps an epoch; masks, flips and scales at random; balanced."""

    def build(out: Path, **values: Any) -> DistillConfig:
        data = {"image_size": 64, "batch_size": 2, "scale_jitter": (0.8, 1.2), **values.pop("data", {})}
        optim = OptimConfig(warmup=2, schedule="restart")
        defaults = {"data": DataConfig(str(tiny_root), **data), "balance": 0.5, "optim": optim, "checkpoint_every": 2}
        defaults["deliver"] = "ema"  # whose average has to be restored, too
        return distill_config(out, **{**defaults, **values})

    return build


def _copy(source: str, target: str) -> None:
    """Copy a file, or link one that is never written to again, to save space."""
    (LINK if Path(source).suffix in (".ckpt", ".safetensors") else shutil.copy)(source, target)


class Camera:
    """Snapshots of a run folder: what a kill at that moment leaves behind."""

    def __init__(self, run: Path, folder: Path) -> None:
        self.run = run
        self.folder = folder
        self.moments: list[str] = []

    def __call__(self, moment: str) -> None:
        """Take a snapshot."""
        shutil.copytree(self.run, self.folder / moment, copy_function=_copy)
        self.moments.append(moment)

    def put_back(self, moment: str) -> None:
        """Restore a snapshot."""
        shutil.rmtree(self.run)
        shutil.copytree(self.folder / moment, self.run)
        for name in (LOCK, WRITER):  # of this process, which is alive: the killed one's would be taken over
            (self.run / name).unlink(missing_ok=True)


def photographing(camera: Camera) -> type[StopOnInterrupt]:
    """Return a callback that takes a snapshot in the middle of every step and at the start of every epoch."""

    class Photographing(StopOnInterrupt):
        def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
            camera(f"epoch {trainer.current_epoch} begins")

        def on_after_backward(self, trainer: Any, *_: Any) -> None:
            camera(f"in step {trainer.global_step}")

    return Photographing


def photograph_files(camera: Camera, patch: pytest.MonkeyPatch) -> None:
    """Take snapshots while a checkpoint is half written, and before and between its two renames."""
    replace, synchronise, link = os.replace, os.fsync, os.link
    writes = iter(range(1000))

    def cut(descriptor: int) -> None:
        file = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if file.suffix == ".part":
            moment = f"writing {file.name.split('.')[1]} {next(writes)}"
            camera(moment)
            half = camera.folder / moment / file.name
            os.truncate(half, half.stat().st_size // 2)
        synchronise(descriptor)

    def rename(source: Path, target: Path) -> None:
        if Path(target).name in RESULTS:
            camera(f"naming {Path(target).stem} {next(writes)}")
        replace(source, target)

    def second_name(source: Path, target: Path) -> None:
        link(source, target)
        camera(f"linking {next(writes)}")

    patch.setattr(os, "fsync", cut)
    patch.setattr(os, "replace", rename)
    patch.setattr(os, "link", second_name)


@pytest.fixture(scope="module")
def whole(
    killable: MakeDistill, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[DistillConfig, Camera, dict[str, Any]]]:
    """An uninterrupted run, snapshots taken during it, and its outcome."""
    folder = tmp_path_factory.mktemp("whole")
    config = killable(folder / "run")
    camera = Camera(Path(config.out), folder / "pictures")
    evaluate = callbacks.evaluate

    def evaluating(*args: Any) -> Any:
        camera(f"evaluation {len(list(camera.folder.glob('evaluation *')))}")
        return evaluate(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dfmsd.engine.fit.StopOnInterrupt", photographing(camera))
        patch.setattr(callbacks, "evaluate", evaluating)
        photograph_files(camera, patch)
        distill(config, allow_weak_teacher=True, check_images=1)
    yield config, camera, outcome(Path(config.out))
    shutil.rmtree(folder)


def outcome(run: Path) -> dict[str, Any]:
    """Load everything that a finished run consists of."""
    last, best = (torch.load(run / name, weights_only=True) for name in ("last.ckpt", "best.ckpt"))
    return {
        "student": load_file(run / "student.safetensors"),
        "layers": last["state_dict"],
        "moments": last["optimizer_states"],
        "rates": last["lr_schedulers"],
        "best": best["state_dict"],
        **{name: (run / name).read_text() for name in TABLES},
    }


def assert_same(found: Any, expected: Any, where: str = "") -> None:
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name, value in expected.items():
            assert_same(found[name], value, f"{where}/{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, value in enumerate(expected):
            assert_same(found[index], value, f"{where}/{index}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    else:
        assert found == expected, where


def resume(config: DistillConfig) -> list[int]:
    """Resume a run, and return the steps that it took."""
    steps: list[int] = []

    class Counting(StopOnInterrupt):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            steps.append(trainer.global_step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dfmsd.engine.fit.StopOnInterrupt", Counting)
        distill(config, resume=True, allow_weak_teacher=True, check_images=1)
    return steps


def first_step(camera: Camera, moment: str) -> int:
    """Return the step that a run killed at this moment resumes from."""
    path = checkpoint.find_checkpoint(camera.folder / moment)
    return checkpoint.saved_step(path) if path else 0


def check_moment(whole: tuple[DistillConfig, Camera, dict[str, Any]], moment: str) -> None:
    config, camera, expected = whole
    camera.put_back(moment)
    begin = first_step(camera, moment)
    assert resume(config) == list(range(begin, STEPS))
    run = Path(config.out)
    assert_same(outcome(run), expected)
    assert not list(run.glob(".*"))
    with (run / "log.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(STEPS))


@pytest.mark.parametrize(
    ("start", "number"),
    [
        ("in step 6", 0),
        ("evaluation 1", 0),
        pytest.param("epoch 2 begins", 0, marks=pytest.mark.slow),  # where the torn checkpoint below resumes, too
        ("writing last", 5),
    ],
)
@pytest.mark.slow
def test_a_run_killed_at_this_moment_resumes_to_the_same_bits(
    whole: tuple[DistillConfig, Camera, dict[str, Any]], start: str, number: int
) -> None:
    check_moment(whole, [moment for moment in whole[1].moments if moment.startswith(start)][number])


def test_a_kill_costs_no_more_than_the_steps_between_two_checkpoints(
    whole: tuple[DistillConfig, Camera, dict[str, Any]],
) -> None:
    config, camera, _ = whole
    known: dict[int, int] = {}

    def first_step(camera: Camera, moment: str) -> int:  # of whole checkpoints, most of which are links to one file
        path = camera.folder / moment / "last.ckpt"
        number = path.stat().st_ino if path.exists() else 0
        if number not in known:
            known[number] = checkpoint.saved_step(path) if number else 0
        return known[number]

    lost = {step: step - first_step(camera, f"in step {step}") for step in range(STEPS)}
    # due every 2 steps; at an epoch's third step for the fourth one, whose own follows the evaluation
    assert lost == {step: {0: 0, 1: 1, 2: 0, 3: 0}[step % EPOCH] for step in range(STEPS)}
    assert all(first_step(camera, f"evaluation {epoch}") == EPOCH * (epoch + 1) - 1 for epoch in range(3))
    assert config.checkpoint_every == 2


def test_a_truncated_last_checkpoint_is_reported_and_the_previous_one_used(
    whole: tuple[DistillConfig, Camera, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    config, camera, expected = whole
    camera.put_back("in step 10")
    last = Path(config.out) / "last.ckpt"
    os.truncate(last, last.stat().st_size - 100)
    assert resume(config) == list(range(8, STEPS))  # saved at 10, and before that at the end of the epoch
    said = " ".join(capsys.readouterr().err.split())
    assert "the last checkpoint is damaged; resuming from the one before it, step 8" in said
    assert_same(outcome(Path(config.out)), expected)


@pytest.mark.slow
def test_runs_killed_at_random_moments_resume_to_the_same_bits(
    whole: tuple[DistillConfig, Camera, dict[str, Any]],
) -> None:
    moments = [moment for moment in whole[1].moments if (whole[1].folder / moment / "config.yaml").exists()]
    assert len(moments) > 40
    for moment in random.Random(0).sample(moments, 25):
        check_moment(whole, moment)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [None, "disk", "ram"])  # in RAM features are lost, and made again in other batches
def test_loader_processes_and_a_teacher_cache_change_nothing(
    killable: MakeDistill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str | None
) -> None:
    monkeypatch.setenv("DFMSD_CACHE", str(tmp_path / "cache"))
    config = killable(tmp_path / "run", data={"workers": 1, "scale_jitter": None}, teacher_cache=kind)
    camera = Camera(Path(config.out), tmp_path / "pictures")
    with monkeypatch.context() as patch:
        patch.setattr("dfmsd.engine.fit.StopOnInterrupt", photographing(camera))
        distill(config, allow_weak_teacher=True, check_images=1)
    expected = outcome(Path(config.out))
    for moment in ("in step 3", "epoch 1 begins", "in step 6", "in step 11"):
        check_moment((config, camera, expected), moment)


# Real processes and SIGKILL at any time.


def start(config: Path, resumed: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "dfmsd", "distill", "--config", str(config), "--allow-weak-teacher"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = ["--check-images", "1", *(["--resume"] if resumed else [])]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([*command, *options], env=environment, **quiet)  # type: ignore[call-overload,no-any-return]


def series(config: DistillConfig, file: Path, delays: Iterator[float]) -> int:
    """Run and kill processes until one finishes, and return the number of kills."""
    kills = 0
    while True:
        process = start(file, resumed=(Path(config.out) / "config.yaml").exists())
        try:
            process.wait(next(delays))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            return kills
        assert process.returncode == -signal.SIGKILL
        kills += 1


@pytest.mark.slow
def test_processes_killed_at_random_moments(killable: MakeDistill, tmp_path: Path) -> None:
    def written(name: str) -> tuple[DistillConfig, Path]:
        config = killable(tmp_path / name)
        (tmp_path / f"{name}.config").mkdir()
        write_config(config, tmp_path / f"{name}.config")
        return config, tmp_path / f"{name}.config" / "config.yaml"

    begun = time.monotonic()
    config, file = written("whole")
    assert start(file, resumed=False).wait() == 0
    duration = time.monotonic() - begun
    expected = outcome(Path(config.out))
    assert json.loads(expected["metrics.json"])["AP"] is not None
    rng = random.Random(1)
    # the first third is start-up, in which nothing changes on the disk
    delays = iter(lambda: rng.uniform(duration / 3, 1.1 * duration), None)
    kills, runs = 0, 0
    while kills < 20:
        config, file = written(f"killed-{runs}")
        kills += series(config, file, delays)
        runs += 1
        assert_same(outcome(Path(config.out)), expected)
        assert runs < 30


@pytest.mark.slow
def test_a_stage_with_reused_layers_can_be_resumed(killable: MakeDistill, tmp_path: Path) -> None:
    config = killable(tmp_path / "run")
    teacher = config.stages[0].teacher
    config = killable(tmp_path / "run", stages=[StageConfig(1, teacher), StageConfig(1, teacher, fresh=False)])
    camera = Camera(Path(config.out), tmp_path / "pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dfmsd.engine.fit.StopOnInterrupt", photographing(camera))
        distill(config, allow_weak_teacher=True, check_images=1)
    expected = outcome(Path(config.out))
    for moment in ("epoch 1 begins", "in step 4", "in step 6"):
        camera.put_back(moment)
        resume(config)
        assert_same(outcome(Path(config.out)), expected)
