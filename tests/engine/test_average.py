from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfmsd.data import DataConfig
from dfmsd.detectors import DetectorConfig, load_detector
from dfmsd.engine import callbacks, delivery
from dfmsd.engine.average import WeightAverage
from dfmsd.engine.config import TrainConfig
from dfmsd.engine.run import train
from dfmsd.engine.steplog import CsvTable
from dfmsd.errors import DfmsdError
from dfmsd.evaluation.evaluate import evaluate
from dfmsd.runfolder import RunFolder


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.norm = nn.BatchNorm2d(1)


def average_of(
    decay: float,
    values: list[float],
    skipped: Collection[int] = (),
    unfinished: Collection[int] = (),
    unlabeled: int = 0,
) -> tuple[WeightAverage, Any]:
    """Return the average over steps that set the student's weight to these values, and the module."""
    from dfmsd.engine.module import DistillationModule

    module = DistillationModule.__new__(DistillationModule)
    nn.Module.__init__(module)
    task = nn.Module()
    task.student = Student()
    module.task = task  # type: ignore[assignment]
    average = WeightAverage(decay)
    average.on_train_start(None, module)  # type: ignore[arg-type]
    for step, value in enumerate(values):
        with torch.no_grad():
            task.student.weight.fill_(value)
            task.student.norm.num_batches_tracked += 1
        module.skipped, module.ends_step = step in skipped, step not in unfinished
        task.labels = step >= unlabeled  # type: ignore[assignment]
        average.on_train_batch_end(None, module, None, None, step)  # type: ignore[arg-type]
    return average, task.student


def test_the_average_is_that_of_the_formula() -> None:
    values, expected = [3.0, 1.0, -2.0, 5.0], 0.0
    for step, value in enumerate(values, 1):
        decay = min(0.25, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    average, student = average_of(0.25, values)
    assert average.tensors["weight"].tolist() == pytest.approx([expected] * 2)
    assert average.tensors["norm.num_batches_tracked"] == student.norm.num_batches_tracked == 4


def test_the_average_begins_with_the_labels() -> None:
    _, student = average_of(0.25, [8.0, 2.0])
    without, _ = average_of(0.25, [8.0, 2.0], unlabeled=2)
    assert torch.equal(without.tensors["weight"], student.weight)
    later, _ = average_of(0.25, [8.0, 2.0, -2.0, 5.0], unlabeled=2)
    decay = [min(0.25, (1 + step) / (10 + step)) for step in (1, 2)]
    expected = decay[1] * (decay[0] * 2.0 + (1 - decay[0]) * -2.0) + (1 - decay[1]) * 5.0
    assert later.tensors["weight"].tolist() == pytest.approx([expected] * 2)


def test_a_decay_of_zero_follows_the_weights() -> None:
    average, student = average_of(0.0, [3.0, 1.0])
    assert torch.equal(average.tensors["weight"], student.weight)


def test_skipped_steps_do_not_count() -> None:
    average, _ = average_of(0.5, [3.0, 100.0, 1.0], [1])
    expected, _ = average_of(0.5, [3.0, 1.0])
    assert torch.equal(average.tensors["weight"], expected.tensors["weight"])


def test_batches_within_a_step_do_not_count() -> None:
    average, _ = average_of(0.5, [3.0, 100.0, 1.0], unfinished=[1])
    expected, _ = average_of(0.5, [3.0, 1.0])
    assert torch.equal(average.tensors["weight"], expected.tensors["weight"])


def test_the_students_own_weights_come_back() -> None:
    average, student = average_of(0.5, [3.0, 1.0])
    with average.applied(student):
        assert torch.equal(student.weight.detach(), average.tensors["weight"])
    assert student.weight.tolist() == [1.0, 1.0]
    average.apply(student)
    assert torch.equal(student.weight.detach(), average.tensors["weight"])


def test_a_restored_average_continues() -> None:
    whole, _ = average_of(0.5, [3.0, 1.0, 2.0])
    first, student = average_of(0.5, [3.0, 1.0])
    second = WeightAverage(0.5)
    second.load_state_dict(first.state_dict())
    module: Any = first_module(student)
    second.on_train_start(None, module)  # type: ignore[arg-type]
    with torch.no_grad():
        student.weight.fill_(2.0)
    module.skipped, module.ends_step = False, True
    second.on_train_batch_end(None, module, None, None, 2)  # type: ignore[arg-type]
    assert torch.equal(second.tensors["weight"], whole.tensors["weight"])


def first_module(student: Any) -> Any:
    from dfmsd.engine.module import DistillationModule

    module = DistillationModule.__new__(DistillationModule)
    nn.Module.__init__(module)
    module.task = nn.Module()  # type: ignore[assignment]
    module.task.student, module.task.labels = student, True  # type: ignore[assignment]
    return module


def run_config(out: Path, root: Path, **values: Any) -> TrainConfig:
    data = DataConfig(str(root), image_size=64, batch_size=2)
    model = DetectorConfig(backbone="mobilenetv3_small_050", fpn_channels=16, head_convs=1)
    return TrainConfig(out=str(out), data=data, model=model, epochs=2, **values)


def weights(path: Path) -> dict[str, Tensor]:
    return dict(load_detector(str(path)).state_dict())


def test_a_run_delivers_and_measures_the_average(tiny_coco: Path, tmp_path: Path) -> None:
    averaged = train(run_config(tmp_path / "ema", tiny_coco, deliver="ema", ema=0.9))
    plain = train(run_config(tmp_path / "last", tiny_coco))
    checkpoint = torch.load(RunFolder(averaged.run).last_checkpoint, weights_only=True)
    state = checkpoint["callbacks"]["WeightAverage"]
    prefix = "task.trainable.student."
    own = {name.removeprefix(prefix): v for name, v in checkpoint["state_dict"].items() if name.startswith(prefix)}
    delivered, last = weights(averaged.run), weights(plain.run)
    assert state["steps"] == checkpoint["global_step"]
    for name, value in delivered.items():
        assert torch.equal(value, state["tensors"][name])
        assert torch.equal(last[name], own[name])  # training itself is the same
    assert any(not torch.equal(value, own[name]) for name, value in delivered.items())
    # a checkpoint is loaded as what was measured
    assert all(torch.equal(value, delivered[name]) for name, value in weights(averaged.run / "last.ckpt").items())
    at_best = torch.load(averaged.run / "best.ckpt", weights_only=True)["callbacks"]["WeightAverage"]["tensors"]
    assert all(torch.equal(value, at_best[name]) for name, value in weights(averaged.run / "best.ckpt").items())


def measuring(aps: list[float | None], patch: pytest.MonkeyPatch) -> None:
    """Let the evaluations of a run find these APs, and fail after the last one."""
    found = iter(aps)
    for module in (callbacks, delivery):
        patch.setattr(module, "evaluate", lambda *args, **kwargs: {**evaluate(*args, **kwargs), "AP": next(found)})


@pytest.mark.parametrize(
    ("last", "average", "line"),
    [
        (0.412, 0.42, "last 41.2, average 42.0: delivered the average"),
        (0.42, 0.412, "last 42.0, average 41.2: delivered the last weights"),
        (0.42, 0.42, "last 42.0, average 42.0: delivered the last weights"),
        (None, None, "last -, average -: delivered the last weights"),
        (None, 0.0, "last -, average 0.0: delivered the average"),
    ],
)
def test_the_better_of_last_and_average_is_delivered(
    tiny_coco: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    last: float | None,
    average: float | None,
    line: str,
) -> None:
    measuring([0.9, last, average, average], monkeypatch)
    config = run_config(tmp_path / "auto", tiny_coco, deliver="auto", ema=0.9)
    result = train(config)
    run = RunFolder(result.run)
    assert line in capsys.readouterr().err
    assert run.read_metrics() == result.metrics
    assert result.metrics["AP"] == (average if line.endswith("average") else last)
    assert (run.read_average_metrics() or {})["AP"] == average
    assert [row["AP"] for row in CsvTable(run.epochs_file).rows()] == ["0.9", "" if last is None else str(last)]

    checkpoint = torch.load(run.last_checkpoint, weights_only=True)
    prefix = "task.trainable.student."
    own = {name.removeprefix(prefix): v for name, v in checkpoint["state_dict"].items() if name.startswith(prefix)}
    averaged = checkpoint["callbacks"]["WeightAverage"]["tensors"]
    chosen, other = (averaged, own) if line.endswith("average") else (own, averaged)
    delivered = weights(result.run)
    assert all(torch.equal(value, chosen[name]) for name, value in delivered.items())
    assert any(not torch.equal(value, other[name]) for name, value in delivered.items())
    assert all(torch.equal(value, own[name]) for name, value in weights(run.last_checkpoint).items())

    run.metrics_file.unlink()  # killed between its last checkpoint and the delivery
    run.weights_file.unlink()
    resumed = train(config, resume=True)
    assert resumed.metrics == result.metrics
    assert all(torch.equal(value, delivered[name]) for name, value in weights(run.path).items())


def test_training_is_the_same_whichever_weights_are_delivered(tiny_coco: Path, tmp_path: Path) -> None:
    runs = [train(run_config(tmp_path / deliver, tiny_coco, deliver=deliver)).run for deliver in ("last", "auto")]
    first, second = (torch.load(RunFolder(run).last_checkpoint, weights_only=True)["state_dict"] for run in runs)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_run_that_ends_early_chooses_too(tiny_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measuring([0.2, 0.1, 0.15, 0.3, 0.25], monkeypatch)
    config = replace(run_config(tmp_path / "run", tiny_coco, deliver="auto", patience=1), epochs=3)
    run = train(config).run
    assert (RunFolder(run).read_metrics() or {})["AP"] == 0.15
    config = replace(config, patience=2)  # it continues as if it had not ended
    train(config, resume=True)
    assert (RunFolder(run).read_metrics() or {})["AP"] == 0.3
    assert (RunFolder(run).read_average_metrics() or {})["AP"] == 0.25


def test_an_impossible_decay_is_refused() -> None:
    with pytest.raises(DfmsdError, match=r"ema must be in 0\.\.1 and below 1, got 1\.0"):
        TrainConfig(out="x", ema=1.0)
