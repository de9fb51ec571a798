"""Short runs in half precision, compared with the same run in float32."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dfmsd.data import CocoDataModule, DataConfig
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.optimizer import build_optimizer
from dfmsd.engine.run import build_task, distill

MakeDistill = Callable[..., DistillConfig]
pytestmark = pytest.mark.slow


@pytest.fixture
def longer(distill_config: MakeDistill, tmp_path: Path, tiny_root: Path, tiny_teachers: tuple[str, str]) -> MakeDistill:
    """Two stages of four epochs each: 16 steps.

    Not with images of 64 pixels: of a convolution with stride 2 on a map of one cell, torch 2.14 computes the weight's
    gradient in bf16 on a CPU from memory that nobody has written to.
    """

    def build(name: str, precision: str) -> DistillConfig:
        first, second = tiny_teachers
        stages = [StageConfig(4, first), StageConfig(4, second)]
        data = DataConfig(str(tiny_root), image_size=128, batch_size=4)
        return distill_config(tmp_path / name, data=data, stages=stages, precision=precision, eval_every=8)

    return build


def losses(run: Path) -> dict[str, list[float]]:
    """Every named loss, and the correlations, step by step."""
    with (run / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0] if "/" in name or name == "loss"}


def differences(found: list[float], expected: list[float]) -> list[float]:
    return [abs(a - b) / max(abs(b), 0.1) for a, b in zip(found, expected, strict=True)]


def test_losses_in_bf16_follow_those_in_float32(longer: MakeDistill) -> None:
    runs = {}
    for precision in ("32", "bf16"):
        config = longer(precision, precision)
        distill(config, allow_weak_teacher=True, check_images=1)
        runs[precision] = losses(Path(config.out))
    half, full = runs["bf16"], runs["32"]
    assert half.keys() == full.keys()
    assert half != full
    assert max(differences(half["loss"], full["loss"])) < 0.05
    assert full["loss"][3] < 0.97 * full["loss"][0]
    for name, values in full.items():
        # the first step has the same weights; later ones may drift apart, as in any arithmetic
        if name.startswith("pearson"):  # correlations over one cell are about 0 and, later, anything
            assert abs(half[name][0] - values[0]) < 0.05, name
            continue
        assert differences(half[name], values)[0] < 0.05, name
        assert max(differences(half[name], values)) < 0.3, name


def test_on_a_cpu_fp16_is_run_as_bf16_and_says_so(longer: MakeDistill) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, which has fp16")
    bf16 = longer("bf16", "bf16")
    distill(bf16, allow_weak_teacher=True, check_images=1)
    fp16 = longer("fp16", "16")
    with pytest.warns(UserWarning, match=r"AMP with fp16 is not supported on CPU. Using `precision='bf16-mixed'`"):
        distill(fp16, allow_weak_teacher=True, check_images=1)
    ours, theirs = (load_file(Path(config.out) / "student.safetensors") for config in (fp16, bf16))
    # the teachers' own autocast is fp16 on a CPU too, so that the runs are alike but not the same
    assert ours.keys() == theirs.keys()
    assert max(differences(losses(Path(fp16.out))["loss"], losses(Path(bf16.out))["loss"])) < 0.05


def test_losses_in_fp16_with_a_loss_scaler_follow_those_in_float32(longer: MakeDistill, tmp_path: Path) -> None:
    """In a loop of torch's own autocast and scaler, since the trainer does not offer them on a CPU."""
    trails = {}
    for dtype in (torch.float32, torch.float16):
        config = longer("loop", "32" if dtype == torch.float32 else "16")
        data = CocoDataModule(config.data, seed=config.seed)
        task = build_task(config, data.class_names).train()
        optimizer = build_optimizer(task.trainable, config.optim)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=dtype == torch.float16)
        loader, trail, steps = data.train_dataloader(), [], 0
        for epoch in range(config.epochs):
            loader.batch_sampler.sampler.set_epoch(epoch)  # type: ignore[union-attr]
            task.enter_stage(0 if epoch < 4 else 1)
            for batch in loader:
                torch.manual_seed(steps)
                with torch.autocast("cpu", torch.float16, enabled=dtype == torch.float16):
                    named = task(batch.images, batch.targets)
                loss = torch.stack([value.float() for value in named.values()]).sum()
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                trail.append(float(loss.detach()))
                steps += 1
                assert all(bool(value.isfinite()) for value in named.values())
        assert scaler.get_scale() in (1.0, 2.0**10)  # no step overflowed
        trails[dtype] = trail
    assert trails[torch.float16] != trails[torch.float32]
    assert max(differences(trails[torch.float16], trails[torch.float32])) < 0.05


def test_no_warning_about_precision_without_need(longer: MakeDistill) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*fp16")
        distill(longer("32", "32"), allow_weak_teacher=True, check_images=1)
