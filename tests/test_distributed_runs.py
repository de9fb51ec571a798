"""Whole runs of two processes, as users start them."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.helpers.exports import randomize

from dfmsd.data import DataConfig
from dfmsd.data.datamodule import CocoDataModule
from dfmsd.detectors import load_detector, save_detector
from dfmsd.engine.build import build_student
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.configfile import read_config
from dfmsd.errors import PREEMPTED
from dfmsd.evaluation.evaluate import evaluate

pytestmark = pytest.mark.slow
Start = Callable[..., "subprocess.Popen[str]"]
PATIENCE = 240
DISTILL = ("-m", "dfmsd", "distill", "--config", "config.yaml", "--allow-weak-teacher")
SPAWNED = (*DISTILL, "--devices", "2")
SLOW = """
import time
from pathlib import Path
from dfmsd.cli.main import main
from dfmsd.engine import fit, teachers
write, read = fit.save_detector, teachers.load_detector
def slow_write(*arguments):
    time.sleep(8)
    write(*arguments)
def late_read(folder):
    assert (Path(folder) / "metrics.json").exists() or Path(folder).name != "made", "read before it was written"
    return read(folder)
fit.save_detector, teachers.load_detector = slow_write, late_read
main()
"""
"""A disk that takes longer than Lightning waits for a process when another one has ended with an error: 5 s."""
FAILING = """
from dfmsd.cli.main import main
from dfmsd.engine.module import DistillationModule
from dfmsd.errors import DfmsdError
step = DistillationModule.training_step
def fail(module, batch, index):
    if module.global_rank == 1 and module.global_step == 3:
        raise DfmsdError("made to fail")
    return step(module, batch, index)
DistillationModule.training_step = fail
main()
"""
SAVING = """
import torch
from dfmsd.cli.main import main
from dfmsd.engine.basis import BasisFit
fit = BasisFit.on_train_batch_start
def fit_and_save(callback, trainer, module, batch, index):
    settled = set(callback.settled)
    fit(callback, trainer, module, batch, index)
    for stage in callback.settled - settled:
        (lesson,) = module.task.lessons
        torch.save(lesson.criterion.basis.state_dict(), f"{trainer.world_size}-{module.global_rank}-{stage}.pt")
BasisFit.on_train_batch_start = fit_and_save
main()
"""


def torchrun() -> tuple[str, ...]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port), *DISTILL)


@pytest.fixture
def start(tiny_coco: Path, tiny_teachers: tuple[str, str], tmp_path: Path) -> Start:
    """Start a run of 7 images, the last of them without objects, in two processes with batches of 2."""
    file = tiny_coco / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    gone = content["images"].pop(0)["id"]
    content["annotations"] = [box for box in content["annotations"] if box["image_id"] != gone]
    file.write_text(json.dumps(content))
    config = {
        "data": {"root": str(tiny_coco), "image_size": 64, "batch_size": 2},
        "student": {"backbone": "mobilenetv3_small_050", "fpn_channels": 16, "head_convs": 1},
        "stages": [{"teacher": teacher, "epochs": 2} for teacher in tiny_teachers],
        "optim": {"warmup": 1},
        "balance": 0.5,
        "checkpoint_every": 1,
        "out": "run",
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))

    def begin(*arguments: str, **changes: Any) -> subprocess.Popen[str]:
        if changes:
            (tmp_path / "config.yaml").write_text(yaml.safe_dump({**config, **changes}))
        place = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([sys.executable, *arguments], cwd=tmp_path, env=place, start_new_session=True, **pipes)  # type: ignore[call-overload, no-any-return]

    return begin


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, said
    return said


def steps(run: Path) -> list[int]:
    try:
        with (run / "log.csv").open(newline="") as file:
            return [int(row["step"]) for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []


def wait_for_step(run: Path, process: subprocess.Popen[str], step: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while step not in steps(run):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(("key", "value"), [("max_hours", 1e-9), ("patience", 1)])
def test_both_processes_end_early_together(start: Start, tmp_path: Path, key: str, value: float) -> None:
    stages = [{"epochs": 9}]  # with a learning rate at which AP does not rise
    said = finish(start(*SPAWNED, stages=stages, optim={"lr": 1e-9}, **{key: value}))
    run = tmp_path / "run"
    assert said.count("ended after epoch") == 1
    assert (run / "metrics.json").exists()
    assert len(steps(run)) in (2, 4)


def test_both_processes_step_together_after_several_batches(start: Start, tmp_path: Path) -> None:
    optim = {"warmup": 1, "effective_batch": 8}
    finish(start(*SPAWNED, optim=optim))
    assert steps(tmp_path / "run") == [*range(4)]  # one an epoch, of two batches of two images in each process
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 4


def test_both_ways_to_start_give_the_same_bits(start: Start, tmp_path: Path) -> None:
    """And as one process sees it: the AP is that of the delivered file on every image once."""
    finish(start(*SPAWNED, deliver="auto", ema=0.5))
    run = tmp_path / "run"
    assert steps(run) == [*range(8)]  # 7 images are 4 for each process, one of them twice: 2 steps an epoch
    first = load_file(run / "student.safetensors")
    metrics = json.loads((run / "metrics.json").read_text())
    data = CocoDataModule(DataConfig(str(tmp_path / "tiny_coco"), image_size=64))
    alone = evaluate(load_detector(run), data.val_dataloader())
    assert metrics["AP"] == alone["AP"]
    assert metrics["per_class"] == alone["per_class"]
    run.rename(tmp_path / "former")
    finish(start(*torchrun()))
    assert steps(run) == [*range(8)]
    second = load_file(run / "student.safetensors")
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_stage_without_labels_leaves_the_head_alone_and_resumes_to_the_same_bits(
    start: Start, tmp_path: Path, tiny_teachers: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [{"teacher": tiny_teachers[0], "epochs": 2, "labels": False}, {"teacher": tiny_teachers[0], "epochs": 1}]
    changes: dict[str, Any] = {"stages": stages, "optim": {"warmup": 1, "weight_decay": 0.5}}
    run = tmp_path / "run"
    process = start(*SPAWNED, **changes)
    wait_for_step(run, process, 1)
    os.killpg(process.pid, signal.SIGTERM)
    finish(process, PREEMPTED)
    monkeypatch.chdir(tmp_path)
    before = build_student(read_config(DistillConfig, Path("config.yaml")), ("square", "disc")).model.state_dict()
    after = load_file(run / "student.safetensors")
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("backbone.") for name in moved)
    finish(start(*SPAWNED, "--resume", **changes))
    assert steps(run) == [*range(6)]
    run.rename(tmp_path / "resumed")
    finish(start(*SPAWNED, **changes))
    whole, resumed = (load_file(tmp_path / name / "student.safetensors") for name in ("run", "resumed"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_a_cache_and_the_best_weights_work_with_two_processes(start: Start, tmp_path: Path) -> None:
    finish(start(*SPAWNED, teacher_cache="disk", deliver="best"))
    state = torch.load(tmp_path / "run" / "best.ckpt", weights_only=True)["state_dict"]
    weights = load_file(tmp_path / "run" / "student.safetensors")
    assert all(torch.equal(value, state[f"task.trainable.student.model.{name}"]) for name, value in weights.items())


@pytest.mark.parametrize("begin", [lambda: SPAWNED, torchrun])
def test_the_second_process_reads_the_pseudo_labels_of_the_first(
    start: Start, tmp_path: Path, tiny_root: Path, tiny_teachers: tuple[str, str], begin: Callable[[], tuple[str, ...]]
) -> None:
    save_detector(randomize(load_detector(tiny_teachers[0])), tmp_path / "labeler")
    pseudo = {"score": 0.01, "teacher": "labeler"}
    data = {"root": str(tmp_path / "tiny_coco"), "image_size": 64, "batch_size": 2}
    said = finish(start(*begin(), data={**data, "unlabeled": str(tiny_root / "train"), "pseudo": pseudo}))
    assert " ".join(said.split()).count("stay unlabeled") == 1
    assert json.loads((tmp_path / "run" / "pseudo_labels.json").read_text())["annotations"]
    assert steps(tmp_path / "run") == [*range(8)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_resumes_to_the_same_bits(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    finish(start(*SPAWNED))
    run.rename(tmp_path / "former")
    process = start(*SPAWNED)
    wait_for_step(run, process, 2)
    os.killpg(process.pid, number)  # as a scheduler does, to all processes
    finish(process, PREEMPTED if number == signal.SIGTERM else -number)
    assert not (run / "metrics.json").exists()
    finish(start(*SPAWNED, "--resume"))
    assert steps(run) == [*range(8)]
    whole, resumed = (load_file(tmp_path / name / "student.safetensors") for name in ("former", "run"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def script(folder: Path, content: str) -> tuple[str, ...]:
    """`SPAWNED` with a change to the program."""
    (folder / "changed.py").write_text(content)
    return ("changed.py", *SPAWNED[2:])


def test_a_preempted_run_has_time_to_write(start: Start, tmp_path: Path) -> None:
    process = start(*script(tmp_path, SLOW))
    wait_for_step(tmp_path / "run", process, 2)
    os.killpg(process.pid, signal.SIGTERM)
    assert "is the student so far" in finish(process, PREEMPTED)


def test_a_teacher_trained_on_first_use_is_written_before_it_is_read(start: Start, tmp_path: Path) -> None:
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    keep = {key: written[key] for key in ("data", "optim")}
    teacher = {**keep, "model": {**written["student"], "arch": "fcos"}, "epochs": 1, "devices": 2, "out": "made"}
    (tmp_path / "made.yaml").write_text(yaml.safe_dump(teacher))
    finish(start(*script(tmp_path, SLOW), stages=[{"teacher": "made.yaml", "epochs": 2}]))
    assert steps(tmp_path / "made") == [0, 1]
    assert steps(tmp_path / "run") == [*range(4)]


def test_every_process_has_the_same_basis(start: Start, tmp_path: Path, tiny_teachers: tuple[str, str]) -> None:
    """And that of the former teacher is the one of a single process: teachers and images are the same."""
    first, second = tiny_teachers
    stages = [
        {"teacher": first, "epochs": 1},
        {"teacher": second, "epochs": 1, "basis": "former"},
        {"teacher": first, "epochs": 1, "basis": "student"},
    ]
    finish(start(*script(tmp_path, SAVING), stages=stages))
    finish(start(*script(tmp_path, SAVING), "--devices", "1", "--out", "alone", stages=stages))

    def saved(name: str) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert state["fitted"]
        return state

    for stage in (1, 2):
        torch.testing.assert_close(saved(f"2-0-{stage}"), saved(f"2-1-{stage}"), rtol=0, atol=0)
    torch.testing.assert_close(saved("2-0-1"), saved("1-0-1"), rtol=0, atol=0)
    bases = [json.loads((tmp_path / run / "basis.json").read_text()) for run in ("run", "alone")]
    assert [basis.keys() for basis in bases] == [{"2", "3"}] * 2
    assert bases[0]["2"] == bases[1]["2"]


def test_the_error_of_any_process_is_one_line(start: Start, tmp_path: Path) -> None:
    process = start(*script(tmp_path, FAILING))
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert "dfmsd: error: made to fail" in said
    assert "Traceback" not in said


def test_no_process_waits_for_a_dead_one(start: Start, tmp_path: Path) -> None:
    process = start(*SPAWNED, optim={"warmup": 1, "lr": 1e-4}, stages=[{"teacher": None, "epochs": 500}])
    wait_for_step(tmp_path / "run", process, 2)
    children = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "dfmsd"], capture_output=True, text=True)
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
    begin = time.monotonic()
    process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert time.monotonic() - begin < 60
