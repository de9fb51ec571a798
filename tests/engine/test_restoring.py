"""Checkpoints of another version: refused in one line, with nothing of the run changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dfmsd.engine.config import TrainConfig
from dfmsd.engine.run import train
from dfmsd.errors import DfmsdError

MakeTrain = Callable[..., TrainConfig]
Content = dict[str, Any]
BIAS = "task.trainable.student.model.head.classification_head.cls_logits.bias"


@pytest.fixture(scope="module")
def finished(train_config: MakeTrain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with metrics and a checkpoint within its second epoch."""
    run = tmp_path_factory.mktemp("finished") / "run"
    train(train_config(run, epochs=2, patience=5, checkpoint_every=1))
    (run / "previous.ckpt").replace(run / "last.ckpt")
    return run


def files(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def fit_loop(content: Content) -> Content:
    loops: Content = content["loops"]["fit_loop"]
    return loops


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda content: content["callbacks"]["EpochEnd"].pop("evaluated"),
            "EpochEnd saved metrics, not metrics, eval",
        ),
        (
            lambda content: content["callbacks"]["EpochEnd"].update(best=0.5),
            "EpochEnd saved metrics, evaluated, best, ",
        ),
        (lambda content: content["callbacks"].pop("FiniteCheck"), "FiniteCheck saved nothing, not skipped"),
        (lambda content: content["callbacks"]["Patience"].pop("best"), "Patience saved best_after, not best, best_aft"),
        (lambda content: content.pop("callbacks"), "it has no callbacks"),
        (lambda content: content.pop("optimizer_states"), "it has no optimizer_states"),
        (lambda content: content.pop("loops"), "it has no loops"),
        (lambda content: fit_loop(content).pop("epoch_progress"), "its training loop has no epoch_progress"),
        (lambda content: fit_loop(content)["state_dict"].pop("combined_loader"), "it has no position in the data"),
        (lambda content: fit_loop(content)["state_dict"].update(combined_loader=[{"at": 1}]), "KeyError: 'given'"),
        (lambda content: content["state_dict"].pop(BIAS), "Missing key.*cls_logits.bias"),
        (lambda content: content["state_dict"].update(other=torch.zeros(1)), "Unexpected key.*other"),
        (lambda content: content["state_dict"].update({BIAS: torch.zeros(9)}), "size mismatch for .*cls_logits.bias"),
        (lambda content: content["optimizer_states"][0]["param_groups"].pop(), "different number of parameter groups"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    finished: Path, train_config: MakeTrain, tmp_path: Path, change: Callable[[Content], object], reason: str
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    checkpoint = run / "last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    change(content)
    torch.save(content, checkpoint)
    before = files(run)
    with pytest.raises(DfmsdError, match=reason) as refusal:
        train(train_config(run, epochs=2, patience=5, checkpoint_every=1), resume=True)
    message = str(refusal.value)
    assert message.startswith(f"{checkpoint} was not written by this version of dfmsd (")
    assert message.endswith(
        "resume the run with the version in environment.json, 0.1.0, or start again with `overwrite`"
    )
    assert "\n" not in message
    assert before.items() <= files(run).items()  # a logger may have opened a file of its own


def test_a_checkpoint_that_fits_is_continued(finished: Path, train_config: MakeTrain, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "environment.json").unlink()
    train(train_config(run, epochs=2, patience=6, checkpoint_every=1), resume=True)
    assert {"metrics.json", "environment.json"} <= set(files(run))


def test_other_errors_are_not_the_checkpoints(
    finished: Path, train_config: MakeTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the training itself keep their traceback."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))

    def fail(*_: Any) -> None:
        raise KeyError("training")

    monkeypatch.setattr("dfmsd.engine.steplog.StepLog.on_train_start", fail)
    with pytest.raises(KeyError, match="training"):
        train(train_config(run, epochs=2, patience=5, checkpoint_every=1), resume=True)
