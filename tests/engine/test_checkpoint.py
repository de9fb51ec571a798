from __future__ import annotations

import errno
import os
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.helpers.full_disk import files_of_at_most
from torch import nn

from dfmsd.engine import checkpoint
from dfmsd.engine.checkpoint import (
    DurableIO,
    LastCheckpoint,
    explain_full_disk,
    find_checkpoint,
    is_intact,
    saved_step,
    tidy,
)
from dfmsd.engine.config import TrainConfig
from dfmsd.engine.interrupt import Interrupted, StopOnInterrupt
from dfmsd.engine.module import DistillationModule
from dfmsd.engine.optim import OptimConfig
from dfmsd.engine.run import train
from dfmsd.errors import INTERRUPTED, PREEMPTED, DfmsdError

MakeTrain = Callable[..., TrainConfig]


def save(run: Path, step: int, name: str = "last.ckpt") -> Path:
    DurableIO().save_checkpoint({"global_step": step, "weights": torch.full((500,), float(step))}, run / name)
    return run / name


def content(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path, weights_only=True)
    return loaded


def test_only_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
        save(tmp_path, step, "best.ckpt")
    assert {path.name: content(path)["global_step"] for path in tmp_path.iterdir()} == {
        "last.ckpt": 3,
        "previous.ckpt": 2,
        "best.ckpt": 3,
    }
    assert torch.equal(content(tmp_path / "previous.ckpt")["weights"], torch.full((500,), 2.0))
    assert saved_step(tmp_path / "last.ckpt") == 3


def test_a_file_system_without_links_gets_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    save(tmp_path, 1)
    save(tmp_path, 2)
    assert saved_step(tmp_path / "previous.ckpt") == 1
    assert saved_step(tmp_path / "last.ckpt") == 2


def test_a_checkpoint_is_flushed_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    synchronise, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: events.append("fsync") or synchronise(file))
    monkeypatch.setattr(os, "replace", lambda a, b: events.append(Path(b).name) or replace(a, b))
    save(tmp_path, 1)
    save(tmp_path, 2)
    assert events == ["fsync", "last.ckpt", "fsync", "fsync", "previous.ckpt", "last.ckpt", "fsync"]


@pytest.mark.parametrize("kept", [0, 1, 10, 1000, -1, -22, -200])
def test_a_truncated_checkpoint_is_not_intact(tmp_path: Path, kept: int) -> None:
    path = save(tmp_path, 1)
    assert is_intact(path)
    os.truncate(path, kept if kept >= 0 else path.stat().st_size + kept)
    assert not is_intact(path)


def test_a_changed_byte_is_detected_or_has_no_effect(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    original, expected = path.read_bytes(), content(path)
    rng = random.Random(0)
    noticed = 0
    for _ in range(300):
        place = rng.randrange(len(original))
        path.write_bytes(original[:place] + bytes([original[place] ^ rng.randrange(1, 256)]) + original[place + 1 :])
        if is_intact(path):
            found = content(path)
            assert found["global_step"] == expected["global_step"]
            assert torch.equal(found["weights"], expected["weights"])
        else:
            noticed += 1
    assert noticed > 150


def test_the_newest_intact_checkpoint_is_found(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path) is None
    last = save(tmp_path, 1)
    assert find_checkpoint(tmp_path) == last
    save(tmp_path, 2)
    assert find_checkpoint(tmp_path) == last
    shutil.copy(last, tmp_path / "kept")
    os.truncate(last, 100)
    assert find_checkpoint(tmp_path) == tmp_path / "previous.ckpt"
    last.unlink()
    assert find_checkpoint(tmp_path) == tmp_path / "previous.ckpt"
    (tmp_path / "previous.ckpt").write_bytes(b"")
    with pytest.raises(DfmsdError, match=r"last\.ckpt is damaged or .* no intact previous\.ckpt; remove them"):
        find_checkpoint(tmp_path)


def test_a_damaged_checkpoint_does_not_become_the_previous_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    last = save(tmp_path, 2)
    os.truncate(last, 100)
    (tmp_path / ".last.ckpt.77.part").write_bytes(b"begun")
    tidy(tmp_path, find_checkpoint(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["previous.ckpt"]
    save(tmp_path, 3)
    assert saved_step(tmp_path / "previous.ckpt") == 1
    assert find_checkpoint(tmp_path) == last


def test_leftovers_of_a_killed_process_with_the_same_id_do_no_harm(tmp_path: Path) -> None:
    save(tmp_path, 1)
    last = save(tmp_path, 2)
    os.link(last, tmp_path / f".previous.ckpt.{os.getpid()}.part")
    save(tmp_path, 3)
    assert saved_step(tmp_path / "previous.ckpt") == 2
    assert saved_step(last) == 3


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    with (
        pytest.raises(DfmsdError, match=r"no space left to write \(.+\); free some, then `resume` continues .* step 2"),
        explain_full_disk(tmp_path),
        files_of_at_most(1000),
    ):
        save(tmp_path, 3)
    assert {path.name: saved_step(path) for path in tmp_path.iterdir()} == {"last.ckpt": 2, "previous.ckpt": 1}


def test_a_full_disk_is_recognized_in_errors_of_safetensors(tmp_path: Path) -> None:
    with (
        pytest.raises(DfmsdError, match=r"no space left to write \(.+\); free some, then start again"),
        explain_full_disk(tmp_path),
        files_of_at_most(1000),
    ):
        save_file({"weights": torch.zeros(5000)}, tmp_path / "student.safetensors")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_every_full_disk_error_is_explained(tmp_path: Path, code: int) -> None:
    with pytest.raises(DfmsdError, match="no space left") as caught, explain_full_disk(tmp_path):
        raise OSError(code, os.strerror(code))
    assert "\n" not in str(caught.value)


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), explain_full_disk(tmp_path):
        raise PermissionError(errno.EACCES, "not yours")


def test_a_run_stopped_by_a_full_disk_can_be_resumed(
    train_config: MakeTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Filling(StopOnInterrupt):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard[1]))

    run = tmp_path / "run"
    config = train_config(run, checkpoint_every=1)
    config.data.batch_size = 2  # four steps
    monkeypatch.setattr("dfmsd.engine.fit.StopOnInterrupt", Filling)
    try:
        with pytest.raises(DfmsdError, match=r"no space left to write .* `resume` continues from step 1"):
            train(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, hard)
    assert saved_step(run / "last.ckpt") == 1
    assert not list(run.glob(".*"))
    monkeypatch.undo()
    train(config, resume=True)


def trainer_at(step: int, steps_per_epoch: int, saved: list[int]) -> Any:
    def reduce(decision: bool, all: bool) -> bool:
        return decision

    return SimpleNamespace(
        global_step=step,
        is_last_batch=step % steps_per_epoch == 0,
        num_training_batches=steps_per_epoch,
        strategy=SimpleNamespace(reduce_boolean_decision=reduce),
        save_checkpoint=lambda path, weights_only: saved.append(step),
    )


MODULE = DistillationModule(nn.Module(), OptimConfig())  # type: ignore[arg-type]


def walk(last: LastCheckpoint, epochs: int, steps_per_epoch: int, each: Callable[[int], None]) -> list[int]:
    """Lead the callback through a run; gives the steps at which it saved."""
    saved: list[int] = []
    last.on_train_start(trainer_at(0, steps_per_epoch, saved), None)  # type: ignore[arg-type]
    for step in range(1, epochs * steps_per_epoch + 1):
        trainer = trainer_at(step, steps_per_epoch, saved)
        each(step)
        last.on_train_batch_end(trainer, MODULE, None, None, (step - 1) % steps_per_epoch)  # type: ignore[arg-type]
        if step % steps_per_epoch == 0:
            last.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    return saved


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (1, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (2, [2, 4, 5, 7, 9, 10]),  # due at 4 and 6: 6 is counted from the epoch's end
        (4, [4, 5, 9, 10]),  # due at 9 for the last step, which has none of its own
        (5, [4, 5, 9, 10]),
        (7, [5, 10]),
    ],
)
def test_checkpoints_are_written_every_n_steps_and_at_the_end_of_an_epoch(
    tmp_path: Path, every: int, expected: list[int]
) -> None:
    saved = walk(LastCheckpoint(tmp_path, StopOnInterrupt(), every), 2, 5, lambda _: None)
    assert saved == expected
    assert max(b - a for a, b in zip([0, *saved], saved, strict=False)) <= every


def test_checkpoints_are_written_every_ten_minutes_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])

    def pass_four_minutes(_: int) -> None:
        now[0] += 240.0

    assert walk(LastCheckpoint(tmp_path, StopOnInterrupt()), 2, 7, pass_four_minutes) == [3, 6, 7, 10, 13, 14]


def test_no_checkpoint_is_written_within_a_step(tmp_path: Path) -> None:
    module = DistillationModule(nn.Module(), OptimConfig(), per_step=3)  # type: ignore[arg-type]
    last, saved = LastCheckpoint(tmp_path, StopOnInterrupt(), 2), list[int]()
    last.on_train_start(trainer_at(0, 8, saved), module)
    for batch in range(8):  # steps of three, three and two batches
        module.ends_step = batch in (2, 5, 7)
        trainer = trainer_at((batch + 1) // 3, 8, saved)
        trainer.is_last_batch = batch == 7
        last.on_train_batch_end(trainer, module, None, None, batch)
    assert saved == [2]
    last.every = 3
    last.on_train_batch_end(trainer_at(4, 8, saved), module, None, None, 2)
    assert saved == [2]
    last.on_train_batch_end(trainer_at(4, 8, saved), module, None, None, 5)  # due at the epoch's last step: one early
    assert saved == [2, 4]


@pytest.mark.parametrize(("asked_at", "saved_at"), [(3, 3), (5, 5)])
@pytest.mark.parametrize("status", [INTERRUPTED, PREEMPTED])
def test_a_signal_saves_and_ends_the_run(tmp_path: Path, asked_at: int, saved_at: int, status: int) -> None:
    stop = StopOnInterrupt()
    saved: list[int] = []

    def ask(step: int) -> None:
        saved.append(step)
        stop.asked = status if step == asked_at else 0

    with pytest.raises(Interrupted) as caught:
        walk(LastCheckpoint(tmp_path, stop, 100), 2, 5, ask)
    assert caught.value.status == status
    assert saved[-1] == saved_at
