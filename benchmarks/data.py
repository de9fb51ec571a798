"""Cost of data loading: its parts compared with minimal references, and loaders with and without a training step.

python benchmarks/data.py
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _coco import CLASSES, HEIGHT, WIDTH, random_photo, write_coco
from _measure import interleaved_medians, parse_arguments, print_rows, write_results
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from dfmsd import DetectorConfig, build_detector
from dfmsd.data import CocoDataModule, DataConfig
from dfmsd.data.batching import collate
from dfmsd.data.images import read_image
from dfmsd.data.records import Records
from dfmsd.data.transforms import Sample, fit, fitted_size, hflip
from dfmsd.engine.allocator import keep_freed_memory
from dfmsd.types import Batch
from dfmsd.utils.device import available_cores

STUDENT = DetectorConfig("fcos", "mobilenetv3_small_050", fpn_channels=64, head_convs=2)
IMAGES, BATCH, SIDE = 64, 8, 192
LOADERS = (("off", 0), ("off", 1), ("off", 2), ("ram", 0), ("disk", 0), ("disk", 1), ("disk", 2))
"""Cache of resized images, and number of loader processes."""
PHOTOS = ((1600, 1200), (4000, 3000))
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


class ReferenceImages(Dataset[tuple[Tensor, dict[str, Any]]]):
    """The images with the transforms of torchvision's detection reference, its preset ``hflip``."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.transform = v2.Compose(
            [v2.ToImage(), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()]
        )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        record = self.records[index]
        boxes = tv_tensors.BoundingBoxes(  # type: ignore[call-overload]  # its canvas is a tuple
            record.boxes, format="XYXY", canvas_size=(record.height, record.width)
        )
        return self.transform(Image.open(record.path).convert("RGB"), {"boxes": boxes, "labels": record.labels})


def measure_reference(root: Path, repeats: int) -> list[dict[str, Any]]:
    """Time epochs of loaders at the images' own size, in images per second, one process."""
    config = DataConfig(str(root), image_size=WIDTH, batch_size=BATCH, cache="off", workers=0)
    data = CocoDataModule(config)
    records = data.train.coco.records
    reference = DataLoader(
        ReferenceImages(records), BATCH, shuffle=True, collate_fn=lambda samples: tuple(zip(*samples, strict=True))
    )
    calls: dict[str, Callable[[], object]] = {
        "dfmsd": partial(epoch, data.train_dataloader(), lambda batch: None),
        "torchvision's reference": lambda: list(reference),
        "decoding alone": lambda: [pil_decode(path) for path in records.paths],
    }
    medians = interleaved_medians(calls, repeats)
    return [
        {
            "loader": name,
            "images_per_s": 1e3 * IMAGES / median.wall,
            "relative_to_reference": medians["torchvision's reference"].wall / median.wall,
        }
        for name, median in medians.items()
    ]


def measure_scaled_decoding(repeats: int) -> list[dict[str, Any]]:
    """Time decoding and resizing of large JPEG images, and the same after libjpeg's own scaling, in milliseconds."""
    rows = []
    for width, height in PHOTOS:
        content = BytesIO()
        random_photo(np.random.default_rng(0)).resize((width, height)).save(content, "JPEG", quality=90)
        calls = {"full": partial(decode_to, content, WIDTH), "scaled": partial(decode_to, content, WIDTH, scaled=True)}
        full, scaled = (call().float() for call in calls.values())
        medians = interleaved_medians(calls, repeats)
        rows.append(
            {
                "jpeg": [width, height],
                "ms": medians["full"].wall,
                "scaled_ms": medians["scaled"].wall,
                "mean_difference": (full - scaled).abs().mean().item(),
            }
        )
    return rows


def decode_to(content: BytesIO, side: int, *, scaled: bool = False) -> Tensor:
    """Decode a JPEG and resize its longer side, with libjpeg's scaling by a power of 2 first if asked for."""
    image = Image.open(content)
    size = fitted_size(image.height, image.width, side)
    if scaled:
        image.draft("RGB", size[::-1])
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return interpolate(pixels[None], size, mode="bilinear", antialias=True)


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
    keep_freed_memory()  # as every run does
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DFMSD_CACHE"] = str(Path(folder) / "cache")
        root = write_coco(Path(folder) / "data", train=IMAGES, val=BATCH)
        parts = measure_parts(root, options.repeats)
        print_rows(f"one image of {WIDTH} x {HEIGHT} to {SIDE} pixels, {THREADS} thread", parts)
        loaders = measure_loaders(root, options.repeats)
        reference = measure_reference(root, options.repeats)
    scaled = measure_scaled_decoding(options.repeats)
    print_rows(f"loaders alone and before a training step, batch {BATCH}, {available_cores()} cores", loaders)
    print_rows(f"loaders at {WIDTH} pixels, batch {BATCH}, one process", reference)
    print_rows(f"JPEG images to {WIDTH} pixels", scaled)
    results = {
        "repeats": options.repeats,
        "configuration": {"images": IMAGES, "jpeg": [WIDTH, HEIGHT], "image_size": SIDE, "batch": BATCH},
        "cores": available_cores(),
        "parts": parts,
        "rows": loaders,
        "reference": reference,
        "scaled_decoding": scaled,
    }
    write_results(options.out, results)


if __name__ == "__main__":
    main()
