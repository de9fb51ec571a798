from __future__ import annotations

import subprocess
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from dfmsd.data import CocoDataModule, DataConfig
from dfmsd.data.dataset import DetectionDataset
from dfmsd.data.loader import ResumableLoader
from dfmsd.types import Batch


def make(root: Path, **values: Any) -> CocoDataModule:
    return CocoDataModule(DataConfig(str(root), image_size=64, **{"batch_size": 2, **values}), seed=3)


def loader_of(root: Path, epoch: int, **values: Any) -> ResumableLoader:
    """Build a loader whose sampler is set to an epoch."""
    loader = make(root, **values).train_dataloader()
    loader.batch_sampler.sampler.set_epoch(epoch)  # type: ignore[union-attr]
    return loader


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.images, b.images) and a.image_ids == b.image_ids and a.sizes == b.sizes


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("given", [0, 1, 3, 4])
def test_a_restored_loader_yields_the_rest_of_the_epoch(tiny_root: Path, workers: int, given: int) -> None:
    expected = list(loader_of(tiny_root, 2, scale_jitter=(0.5, 1.5)))
    saved = loader_of(tiny_root, 2, scale_jitter=(0.5, 1.5))
    list(islice(saved, given))
    state = saved.state_dict()
    restored = loader_of(tiny_root, 2, scale_jitter=(0.5, 1.5), workers=workers)
    restored.load_state_dict(state)
    assert len(restored) == len(expected) == 4
    found = list(restored)
    assert len(found) == 4 - given
    assert all(same(a, b) for a, b in zip(found, expected[given:], strict=True))
    assert restored.state_dict() == {"given": 4}
    again = list(restored)  # the next epoch is complete
    assert all(same(a, b) for a, b in zip(again, expected, strict=True))


def test_skipped_batches_are_not_decoded(tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    decode = DetectionDataset.__getitem__
    monkeypatch.setattr(DetectionDataset, "__getitem__", lambda self, key: asked.append(key) or decode(self, key))
    loader = loader_of(tiny_root, 1)
    loader.load_state_dict({"given": 3})
    assert len(list(loader)) == 1
    assert len(asked) == 2


def test_batches_with_unlabeled_images_resume_too(tiny_root: Path, tmp_path: Path) -> None:
    for image in sorted((tiny_root / "val").iterdir()):
        (tmp_path / image.name).write_bytes(image.read_bytes())
    (tmp_path / "readme.txt").write_text("no image")
    root = tmp_path / "other"
    root.symlink_to(tiny_root)
    moved = {"unlabeled": str(tmp_path), "unlabeled_ratio": 0.5, "holdout": 0.3}
    expected = list(loader_of(tiny_root, 1, **moved))
    loader = loader_of(tiny_root, 1, **moved)
    loader.load_state_dict({"given": 1})
    assert all(same(a, b) for a, b in zip(list(loader), expected[1:], strict=True))
    assert any(number < 0 for number in expected[1].image_ids)


class Recorder(pl.LightningModule):
    """Record the image ids of each batch, and fail at a step after saving."""

    def __init__(self, path: Path, fails_at: int | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.path = path
        self.fails_at = fails_at
        self.seen: list[tuple[int, ...]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen.append(tuple(batch.image_ids))
        loss: torch.Tensor = self.layer(torch.ones(1)).sum()
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        if self.trainer.global_step == self.fails_at:
            self.trainer.save_checkpoint(self.path, weights_only=False)
            raise RuntimeError("the power went off")


@pytest.fixture
def fit(tiny_root: Path, tmp_path: Path) -> Callable[..., list[tuple[int, ...]]]:
    def run(workers: int, fails_at: int | None = None, resumed: bool = False) -> list[tuple[int, ...]]:
        path = tmp_path / "saved.ckpt"
        module = Recorder(path, fails_at)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = pl.Trainer(
            max_epochs=3,
            accelerator="cpu",
            limit_val_batches=0,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
            **quiet,  # type: ignore[arg-type]
        )
        data = make(tiny_root, workers=workers)
        if fails_at is None:
            trainer.fit(module, datamodule=data, ckpt_path=path if resumed else None, weights_only=True)
        else:
            with pytest.raises(RuntimeError, match="power"):
                trainer.fit(module, datamodule=data)
        return module.seen

    return run


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("step", [2, 6])
def test_a_resumed_training_sees_the_images_of_an_uninterrupted_one(
    fit: Callable[..., list[tuple[int, ...]]], workers: int, step: int
) -> None:
    """Loader workers prefetch, so a resumed run could see images of the first epoch again."""
    whole = fit(workers)
    assert len(whole) == 12
    assert len(set(whole)) > 9
    before, after = fit(workers, fails_at=step), fit(workers, resumed=True)
    assert before + after == whole


def test_loader_workers_ignore_stop_signals_to_the_whole_run(tiny_root: Path) -> None:
    loader = loader_of(tiny_root, 0, workers=1)
    walk = iter(loader)
    next(walk)
    (worker,) = loader._iterator._workers  # type: ignore[union-attr]
    others = "; ".join(f"kill -{name} {worker.pid}" for name in ("INT", "TERM", "USR1", "HUP"))
    subprocess.run(["sh", "-c", others], check=True)
    assert len(list(walk)) == 3
    assert worker.is_alive()
    worker.terminate()  # a signal from the parent still ends it
    worker.join(10)
    assert worker.exitcode == 0
