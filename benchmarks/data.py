"""Cost of data loading: its parts compared with minimal references, and loaders with and without a training step.

python benchmarks/data.py
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _coco import CLASSES, HEIGHT, WIDTH, write_coco
from _measure import interleaved_medians, parse_arguments, print_rows, write_results
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader

from dfmsd import DetectorConfig, build_detector
from dfmsd.data import CocoDataModule, DataConfig
from dfmsd.data.batching import collate
from dfmsd.data.images import read_image
from dfmsd.data.transforms import Sample, fit, hflip
from dfmsd.types import Batch
from dfmsd.utils.device import available_cores

STUDENT = DetectorConfig("fcos", "mobilenetv3_small_050", fpn_channels=64, head_convs=2)
IMAGES, BATCH, SIDE = 64, 8, 192
LOADERS = (("off", 0), ("off", 1), ("off", 2), ("ram", 0), ("disk", 0), ("disk", 1), ("disk", 2))
"""Cache of resized images, and number of loader processes."""
THREADS = 1


def measure_parts(root: Path, repeats: int) -> list[dict[str, Any]]:
    """Time each part on one batch, in milliseconds per image, and its minimal reference."""
    records = CocoDataModule(DataConfig(str(root), image_size=SIDE)).train.coco.records[:BATCH]
    paths, decoded = [record.path for record in records], [read_image(record.path) for record in records]
    targets = [{"boxes": record.boxes, "labels": record.labels} for record in records]
    samples = [fit(image, target, SIDE) for image, target in zip(decoded, targets, strict=True)]
    squares = [fit(image[..., :HEIGHT], target, SIDE) for image, target in zip(decoded, targets, strict=True)]
    size = samples[0].image.shape[-2:]
    parts: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "decode": (lambda: [read_image(path) for path in paths], lambda: [pil_decode(path) for path in paths]),
        "resize": (
            lambda: [fit(image, target, SIDE) for image, target in zip(decoded, targets, strict=True)],
            lambda: [interpolate(image[None], size, mode="bilinear", antialias=True) for image in decoded],
        ),
        "flip": (lambda: [hflip(s) for s in samples], lambda: [s.image.flip(-1) for s in samples]),
        "collate, full frames": (lambda: collate(squares, SIDE), lambda: bare_stack(squares)),
        "collate, padded": (lambda: collate(samples, SIDE), lambda: bare_stack(squares)),
    }
    calls = {f"{part}/{kind}": call for part, pair in parts.items() for kind, call in zip("ab", pair, strict=True)}
    medians = interleaved_medians(calls, repeats)
    rows = []
    for part in parts:
        ms, bare = (medians[f"{part}/{kind}"].wall / BATCH for kind in "ab")
        rows.append({"part": part, "ms": ms, "bare_ms": bare, "ratio": ms / bare})
    return rows


def pil_decode(path: Path) -> np.ndarray[Any, Any]:
    """Decode with Pillow alone."""
    return np.array(Image.open(path).convert("RGB"))


def bare_stack(samples: list[Sample]) -> Tensor:
    """Stack and convert images of one size, the minimum cost of collating."""
    stacked = torch.stack([sample.image.permute(1, 2, 0) for sample in samples])
    return stacked.permute(0, 3, 1, 2).float().div_(255)


def measure_loaders(root: Path, repeats: int) -> list[dict[str, Any]]:
    """Time epochs of each loader, alone and with a training step on each batch, in images per second."""
    step = training_step()
    ready = list(loader(root, "off", 0))  # the same batches in every epoch: the sampler stays in epoch 0
    calls: dict[str, Callable[[], object]] = {}
    for cache, workers in LOADERS:
        source = loader(root, cache, workers)
        calls[f"{cache}/{workers}"] = partial(epoch, source, lambda batch: None)
        calls[f"{cache}/{workers}/train"] = partial(epoch, source, step)
    calls["step"] = lambda: [step(batch) for batch in ready]
    medians = interleaved_medians(calls, repeats)
    speed = {name: 1e3 * IMAGES / median.wall for name, median in medians.items()}
    return [
        {
            "cache": cache,
            "workers": workers,
            "images_per_s": speed[f"{cache}/{workers}"],
            "training_images_per_s": speed[f"{cache}/{workers}/train"],
            "relative_to_step_alone": speed[f"{cache}/{workers}/train"] / speed["step"],
        }
        for cache, workers in LOADERS
    ]


def loader(root: Path, cache: str, workers: int) -> DataLoader[Sample]:
    """Return the engine's loader of training images."""
    config = DataConfig(str(root), image_size=SIDE, batch_size=BATCH, cache=cache, workers=workers)
    return CocoDataModule(config).train_dataloader()


def training_step() -> Callable[[Batch], None]:
    """Build the student and return its training step, without the optimizer."""
    torch.manual_seed(0)
    student = build_detector(STUDENT, CLASSES).train().to(memory_format=torch.channels_last)

    def step(batch: Batch) -> None:
        _, losses = student(batch.images, batch.targets)
        torch.stack(list(losses.values())).sum().backward()
        student.zero_grad()

    return step


def epoch(source: DataLoader[Sample], step: Callable[[Batch], None]) -> None:
    """Run one epoch."""
    for batch in source:
        step(batch)


def main() -> None:
    """Measure parts and loaders, print tables and write JSON."""
    options = parse_arguments(__doc__, "data", repeats=15)
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DFMSD_CACHE"] = str(Path(folder) / "cache")
        root = write_coco(Path(folder) / "data", train=IMAGES, val=BATCH)
        parts = measure_parts(root, options.repeats)
        print_rows(f"one image of {WIDTH} x {HEIGHT} to {SIDE} pixels, {THREADS} thread", parts)
        loaders = measure_loaders(root, options.repeats)
    print_rows(f"loaders alone and before a training step, batch {BATCH}, {available_cores()} cores", loaders)
    results = {
        "repeats": options.repeats,
        "configuration": {"images": IMAGES, "jpeg": [WIDTH, HEIGHT], "image_size": SIDE, "batch": BATCH},
        "cores": available_cores(),
        "parts": parts,
        "rows": loaders,
    }
    write_results(options.out, results)


if __name__ == "__main__":
    main()
