"""A dry run of a recipe: random weights, random images, and two training steps at full size."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from torchvision.models.detection import FCOS_ResNet50_FPN_Weights

from dfmsd.comparison.config import CompareConfig
from dfmsd.comparison.runs import build_tasks, plan_runs
from dfmsd.comparison.step_cost import measure_peaks
from dfmsd.data.datamodule import CocoDataModule
from dfmsd.detectors.base import UNUSED_CLASSES
from dfmsd.detectors.frameworks import MMDET
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.configfile import read_config
from dfmsd.errors import DfmsdError
from dfmsd.estimation.schedules import coco_flops, gpu_hours, stage_flops
from dfmsd.recipes.catalog import Recipe
from dfmsd.utils.device import default_device
from dfmsd.utils.extras import check_extra
from dfmsd.utils.files import write_json

PHOTO = (480, 640)
"""Height and width of most of COCO's images."""
IMAGES = 2
"""In a step; a run may have more."""


@dataclass(frozen=True)
class Trial:
    """What a run of a method takes.

    Attributes:
        peak_bytes: memory of two training steps of `IMAGES` images: weights, optimizer and tensors.
        hours: GPU -> predicted hours of the run on COCO.
    """

    peak_bytes: int
    hours: Mapping[str, float]


def try_recipe(recipe: Recipe) -> dict[str, Trial]:
    """Take two training steps of each method of a recipe with images of full size, without its data and weights.

    Args:
        recipe: what to try.

    Returns:
        Method -> what a run takes.

    Raises:
        DfmsdError: a model cannot be built, or a method does not apply.
    """
    config = without_weights(read_config(CompareConfig, recipe.file))
    with TemporaryDirectory() as folder:
        write_photos(Path(folder), IMAGES)
        data_config = replace(config.data, root=folder, batch_size=IMAGES)
        config = replace(config, data=data_config, out=str(Path(folder, "out")))
        data = CocoDataModule(config.data)
        [pair] = config.pairs
        runs, _ = plan_runs(config, config.parsed_methods(), pair)
        tasks, skipped = build_tasks(config, runs, data.class_names)
        if skipped:
            raise DfmsdError(f"{recipe.name}: {skipped[0].method.name} does not apply: {skipped[0].reason}")
        peaks = measure_peaks(tasks, data)
    return {name: Trial(peaks[name], _hours(*task, config.data.image_size)) for name, task in tasks.items()}


def without_weights(config: CompareConfig) -> CompareConfig:
    """Return a config whose detectors are built from what is installed, with random weights.

    Args:
        config: of a recipe.

    Raises:
        DfmsdError: MMDetection is missing, or has no such config.
    """
    student = replace(config.student, arch=_installed(config.student.arch), pretrained=False, init=None)
    pairs = {pair: [_installed(teacher) for teacher in teachers] for pair, teachers in config.pairs.items()}
    return replace(config, student=student, pairs=pairs, teacher_cache=None)


def write_photos(root: Path, count: int) -> None:
    """Write a data set with COCO's classes: for each split so many random images, with an object in each.

    Args:
        root: its folder.
        count: images of a split.
    """
    named = FCOS_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    names = [name for name in named if name not in UNUSED_CLASSES]
    height, width = PHOTO
    draw = np.random.default_rng(0)
    for number, split in enumerate(("train", "val")):
        (root / split).mkdir()
        images, objects = [], []
        for index in range(1, count + 1):
            pixels = draw.integers(0, 255, (height, width, 3), dtype=np.uint8)
            pixels[:2] = number  # no image of one split is in the other
            Image.fromarray(pixels).save(root / split / f"{index}.png")
            images.append({"id": index, "file_name": f"{index}.png", "width": width, "height": height})
            box = {"bbox": [100.0, 80.0, 200.0, 160.0], "area": 32000.0, "iscrowd": 0}
            objects.append({"id": index, "image_id": index, "category_id": 1, **box})
        classes = [{"id": label, "name": name} for label, name in enumerate(names, 1)]
        (root / "annotations").mkdir(exist_ok=True)
        truth = {"images": images, "annotations": objects, "categories": classes}
        write_json(root / "annotations" / f"instances_{split}.json", truth)


def _installed(reference: str) -> str:
    """Return a reference to the config of the same name that MMDetection brings, without a checkpoint."""
    if not reference.startswith(MMDET):
        return reference
    check_extra(reference, ["mmdet"], "mmdet")
    spec = find_spec("mmdet")
    assert spec is not None
    name = Path(re.split("[:,]", reference)[1]).name
    found = next(Path(str(spec.origin)).parent.glob(f".mim/configs/*/{name}"), None)
    if found is None:
        raise DfmsdError(f"{reference}: this version of MMDetection has no config {name}; install another")
    return f"{MMDET}{found}"


def _hours(config: DistillConfig, task: DistillationTask, side: int) -> dict[str, float]:
    flops = []
    for index in range(len(task.stages)):
        task.enter_stage(index, begins=False)
        flops.append(stage_flops(task, default_device()))
    height, width = PHOTO
    seen = (side * height // width, side)
    total = coco_flops(config, flops, config.epochs, seen)
    return {name: hours["run"] for name, hours in gpu_hours({"run": total}, config.precision).items()}
