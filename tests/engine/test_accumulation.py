from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from tests.helpers.few_neurons import FewNeurons, plan
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dfmsd.data import DataConfig
from dfmsd.distillation.stages import learning_rate_factor
from dfmsd.engine.accumulation import count_steps, ends_step, mean_values, step_batches
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.interrupt import StopOnInterrupt
from dfmsd.engine.module import DistillationModule
from dfmsd.engine.optim import OptimConfig
from dfmsd.engine.run import distill, train
from dfmsd.errors import INTERRUPTED, Stopped
from dfmsd.runfolder import RunFolder
from dfmsd.types import Batch, Target


@pytest.mark.parametrize("per_step", [1, 2, 3, 7, 9])
def test_the_batches_of_an_epoch_fall_into_steps(per_step: int) -> None:
    batches = 7
    ends = [batch for batch in range(batches) if ends_step(batch, batches, per_step)]
    assert len(ends) == count_steps(batches, per_step)
    assert ends[-1] == batches - 1
    lengths = [step_batches(batch, batches, per_step) for batch in ends]
    assert sum(lengths) == batches
    assert all(length == per_step for length in lengths[:-1])
    assert [last - first for first, last in zip([-1, *ends], ends, strict=False)] == lengths


def test_values_of_a_step_are_means() -> None:
    values = [{"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, {"a": torch.tensor(2.0), "b": torch.tensor(6.0)}]
    assert mean_values(values) == {"a": 1.5, "b": 4.0}
    assert mean_values(values[:1]) == {"a": 1.0, "b": 2.0}


class Loader(pl.LightningDataModule):
    def __init__(self, batches: Sequence[Batch]) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> Any:
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]


class Gradients(pl.Callback):
    """The gradient and learning rate of every step."""

    def __init__(self) -> None:
        self.seen: list[list[Tensor]] = []
        self.lrs: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, module: pl.LightningModule, optimizer: Any) -> None:
        self.seen.append([parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None])
        self.lrs.append(optimizer.param_groups[0]["lr"])


def fitted(batches: Sequence[Batch], per_step: int, folder: Path) -> Gradients:
    """Train a few neurons whose losses are means over images, without batch norm."""
    torch.manual_seed(0)
    task = plan(None)
    assert isinstance(task.student, FewNeurons)
    task.student.norm = task.student.drop = nn.Identity()  # type: ignore[assignment]
    seen = Gradients()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        accumulate_grad_batches=per_step,
        callbacks=[seen],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    module = DistillationModule(task, OptimConfig(name="sgd", lr=1e-3, warmup=0), per_step=per_step)
    trainer.fit(module, datamodule=Loader(batches))
    return seen


def split(images: Tensor, size: int) -> list[Batch]:
    targets: list[Target] = [
        {"boxes": torch.ones(index % 3, 4), "labels": torch.zeros(index % 3, dtype=torch.long)}
        for index in range(len(images))
    ]
    starts = range(0, len(images), size)
    return [Batch(images[start : start + size], targets[start : start + size], [], [], [], []) for start in starts]


@pytest.mark.filterwarnings("ignore")
def test_two_batches_of_four_are_one_of_eight(tmp_path: Path) -> None:
    images = torch.rand(20, 3, 32, 32)
    ours, theirs = fitted(split(images, 4), 2, tmp_path), fitted(split(images, 8), 1, tmp_path)
    assert len(ours.seen) == len(theirs.seen) == 3  # the last one has half as many images
    for mine, other in zip(ours.seen, theirs.seen, strict=True):
        for a, b in zip(mine, other, strict=True):
            torch.testing.assert_close(a, b)
    assert ours.lrs == theirs.lrs == [1e-3 * learning_rate_factor(step, [1], 3, warmup=0) for step in range(3)]


def rows(run: Path) -> list[dict[str, str]]:
    with RunFolder(run).log_file.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def accumulating(distill_config: Callable[..., DistillConfig], tiny_root: Path) -> Callable[..., DistillConfig]:
    """Two stages of two epochs and one, with four batches an epoch, of random sizes: steps of three and of one."""

    def build(out: Path, **values: Any) -> DistillConfig:
        data = DataConfig(str(tiny_root), image_size=64, batch_size=2, multi_scale=(0.5, 1.5))
        optim = OptimConfig(lr=1e-3, warmup=2, effective_batch=6)
        return distill_config(out, data=data, optim=optim, deliver="ema", balance=0.5, **values)

    return build


def test_a_run_counts_steps_and_resumes_between_them(
    accumulating: Callable[..., DistillConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"allow_weak_teacher": True, "check_images": 1}
    whole = distill(accumulating(tmp_path / "whole"), **options)
    found = rows(whole.run)
    assert [int(row["step"]) for row in found] == list(range(6))
    factors = [learning_rate_factor(step, [2, 1], 2, warmup=2) for step in range(6)]
    assert [float(row["lr"]) for row in found] == pytest.approx([1e-3 * factor for factor in factors], rel=1e-5)
    state = torch.load(RunFolder(whole.run).last_checkpoint, weights_only=True)
    assert state["global_step"] == state["callbacks"]["WeightAverage"]["steps"] == 6

    class Asking(StopOnInterrupt):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            self.asked = self.asked or INTERRUPTED * ((trainer.current_epoch, index) == (1, 0))

    with monkeypatch.context() as patch:
        patch.setattr("dfmsd.engine.fit.StopOnInterrupt", Asking)
        with pytest.raises(Stopped):
            distill(accumulating(tmp_path / "run", checkpoint_every=1), **options)
    run = RunFolder(tmp_path / "run")
    assert torch.load(run.last_checkpoint, weights_only=True)["global_step"] == 3  # not within its three batches
    distill(accumulating(tmp_path / "run"), resume=True, **options)
    assert rows(run.path) == found
    resumed, expected = load_file(run.weights_file), load_file(RunFolder(whole.run).weights_file)
    assert all(torch.equal(value, expected[name]) for name, value in resumed.items())


def test_a_step_logs_the_mean_of_its_batches(
    train_config: Callable[..., TrainConfig], tiny_root: Path, tmp_path: Path
) -> None:
    data = DataConfig(str(tiny_root), image_size=64, batch_size=2)
    still = {"name": "sgd", "lr": 1e-30, "warmup": 0}  # the weights stay, and so do the losses of the batches
    runs = [
        train(train_config(tmp_path / str(size), data=data, optim=OptimConfig(**still, effective_batch=size))).run
        for size in (2, 4)
    ]
    alone, together = ([float(row["loss"]) for row in rows(run)] for run in runs)
    assert together == pytest.approx([sum(alone[:2]) / 2, sum(alone[2:]) / 2], rel=1e-4)
