"""Fixtures for every test: fixed seeds, one thread, a tiny COCO data set, the shared data sets where they are."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from dfmsd.data import DataConfig
from dfmsd.detectors import DetectorConfig, build_detector, save_detector
from dfmsd.distillation.stages import StageConfig
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.engine.module import DistillationModule
from dfmsd.engine.optim import OptimConfig
from dfmsd.engine.run import build_task
from dfmsd.engine.saved_config import write_config

if TYPE_CHECKING:
    from tests.helpers.command import Command

os.environ.setdefault("MPLBACKEND", "Agg")
torch.set_num_threads(1)

TINY_BACKBONE = "test_efficientnet"
"""Of timm, with a layer a stage: half as many as the smallest one that is of use."""
TINY_CATEGORIES = {1: "square", 3: "disc"}  # a gap, as in COCO's own ids
TINY_COLOURS = {1: (200, 40, 40), 3: (40, 60, 200)}


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def dfmsd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line in an empty folder."""
    from tests.helpers.command import Command

    return Command(tmp_path, monkeypatch, capsys)


@pytest.fixture
def shared_data() -> Path:
    """Folder of the data sets that lie beside the repository, not in it."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data sets at {folder}")
    return folder


@pytest.fixture
def tiny_coco(tmp_path: Path) -> Path:
    """Root of a data set in the COCO layout: classes ("square", "disc"), 8 train and 4 val images of 64 to 96 px.

    The last train image has no box; each other one has one to three.
    """
    return write_tiny(tmp_path / "tiny_coco")


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of `tiny_coco`, made once, for those who only read it."""
    return write_tiny(tmp_path_factory.mktemp("data") / "tiny_coco")


@pytest.fixture(scope="session")
def tiny_teachers(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two folders, each with an untrained detector of another family, that knows the classes of `tiny_coco`."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("teachers")
    for arch, channels in (("fcos", 32), ("faster_rcnn", 16)):
        config = DetectorConfig(arch, TINY_BACKBONE, fpn_channels=channels, head_convs=1)
        save_detector(build_detector(config, list(TINY_CATEGORIES.values())), folder / arch)
    return str(folder / "fcos"), str(folder / "faster_rcnn")


STUDENT = DetectorConfig("fcos", TINY_BACKBONE, fpn_channels=16, head_convs=1)


@pytest.fixture(scope="session")
def distill_config(tiny_root: Path, tiny_teachers: tuple[str, str]) -> Callable[..., DistillConfig]:
    """Two stages, of two epochs and one epoch of two steps, with masks that draw random numbers."""

    def build(out: Path, **values: Any) -> DistillConfig:
        first, second = tiny_teachers
        defaults: dict[str, Any] = {
            "data": DataConfig(str(tiny_root), image_size=64, batch_size=4),
            "student": STUDENT,
            "stages": [StageConfig(epochs=2, teacher=first), StageConfig(epochs=1, teacher=second)],
            "loss": {"name": "dfmsd", "direction": "random"},
            "optim": OptimConfig(warmup=1),
            "balance": None,
        }
        return DistillConfig(out=str(out), **{**defaults, **values})

    return build


@pytest.fixture(scope="session")
def built_task(
    distill_config: Callable[..., DistillConfig], tmp_path_factory: pytest.TempPathFactory
) -> DistillationTask:
    """The task of `distill_config` with balanced terms, built once: take `task`."""
    return build_task(distill_config(tmp_path_factory.mktemp("built"), balance=0.5), ("square", "disc"))


@pytest.fixture
def task(built_task: DistillationTask) -> DistillationTask:
    """A task that a test may change."""
    return copy.deepcopy(built_task)


@pytest.fixture(scope="session")
def finished_run(
    distill_config: Callable[..., DistillConfig], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Make the folder of a run without training it: ``finished_run(name, **values)``, or with ``no_distill=True``."""

    def make(name: str, *, no_distill: bool = False, **values: Any) -> Path:
        run = tmp_path_factory.mktemp("finished") / name
        config = distill_config(run, **values)
        config = config.without_teachers() if no_distill else config
        task = build_task(config, ("square", "disc"))
        save_detector(task.student, run)
        write_config(config, run)
        torch.save({"state_dict": DistillationModule(task, config.optim).state_dict()}, run / "last.ckpt")
        metrics = {"AP": 0.25, "AP50": 0.5, "APs": 0.2, "APm": 0.3, "per_class": {"square": 0.5, "disc": 0.125}}
        (run / "metrics.json").write_text(json.dumps(metrics))
        return run

    return make


@pytest.fixture(scope="session")
def train_config(tiny_root: Path) -> Callable[..., TrainConfig]:
    """One epoch of two steps."""

    def build(out: Path, **values: Any) -> TrainConfig:
        defaults: dict[str, Any] = {
            "data": DataConfig(str(tiny_root), image_size=64, batch_size=4),
            "model": STUDENT,
            "epochs": 1,
            "optim": OptimConfig(warmup=1),
        }
        return TrainConfig(out=str(out), **{**defaults, **values})

    return build


def write_tiny(root: Path) -> Path:
    rng = np.random.default_rng(0)
    _write_split(root, "train", rng, count=8, empty=7)
    _write_split(root, "val", rng, count=4, empty=None)
    return root


def _write_split(root: Path, split: str, rng: np.random.Generator, count: int, empty: int | None) -> None:
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for index in range(count):
        width, height = (int(side) for side in rng.integers(64, 97, size=2))
        image = Image.fromarray(rng.integers(90, 130, size=(height, width, 3), dtype=np.uint8))
        name = f"{split}_{index}.jpg"
        for _ in range(0 if index == empty else int(rng.integers(1, 4))):
            category, box = _draw_object(image, rng)
            x0, y0, side = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": category,
                    "bbox": [x0, y0, side, side],
                    "area": side * side,
                    "iscrowd": 0,
                }
            )
        image.save(root / split / name, quality=95)
        images.append({"id": index + 1, "file_name": name, "width": width, "height": height})
    categories = [{"id": key, "name": name} for key, name in TINY_CATEGORIES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")


def _draw_object(image: Image.Image, rng: np.random.Generator) -> tuple[int, tuple[int, int, int]]:
    """Draw one object; gives its category id and x0, y0, side in pixels."""
    category = int(rng.choice(list(TINY_CATEGORIES)))
    side = int(rng.integers(16, 33))
    x0, y0 = (int(rng.integers(0, limit - side + 1)) for limit in image.size)
    draw = ImageDraw.Draw(image)
    shape = draw.rectangle if TINY_CATEGORIES[category] == "square" else draw.ellipse
    shape((x0, y0, x0 + side - 1, y0 + side - 1), fill=TINY_COLOURS[category])
    return category, (x0, y0, side)
