"""Random photographs in the COCO layout, so that benchmarks need no downloads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dfmsd.utils.files import write_json

WIDTH, HEIGHT = 640, 480
QUALITY = 90
CLASSES = tuple(f"class {i}" for i in range(7))
BOXES = 6
"""Objects per image."""


def write_coco(root: Path, train: int, val: int, seed: int = 0) -> Path:
    """Write JPEG images of 640 x 480 pixels with random boxes of 40 to 200 pixels."""
    rng = np.random.default_rng(seed)
    (root / "annotations").mkdir(parents=True)
    for split, count in (("train", train), ("val", val)):
        (root / split).mkdir()
        for index in range(count):
            random_photo(rng).save(root / split / f"{index}.jpg", quality=QUALITY)
        content = {
            "images": [
                {"id": index + 1, "file_name": f"{index}.jpg", "width": WIDTH, "height": HEIGHT}
                for index in range(count)
            ],
            "categories": [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)],
            "annotations": [random_object(rng, number, number // BOXES + 1) for number in range(count * BOXES)],
        }
        write_json(root / "annotations" / f"instances_{split}.json", content)
    return root


def random_photo(rng: np.random.Generator) -> Image.Image:
    """Draw smooth colors with some noise, which compress to about 100 kB like a photograph."""
    colors = Image.fromarray(rng.integers(256, size=(HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8))
    smooth = np.asarray(colors.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.float32)
    noise = rng.normal(0, 6, size=smooth.shape)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


def random_object(rng: np.random.Generator, number: int, image_id: int) -> dict[str, Any]:
    """Draw one annotation."""
    sides = rng.integers(40, 201, size=2)
    corner = rng.integers((WIDTH, HEIGHT) - sides + 1)
    return {
        "id": number + 1,
        "image_id": image_id,
        "category_id": int(rng.integers(len(CLASSES))) + 1,
        "bbox": [*corner.tolist(), *sides.tolist()],
        "area": int(sides.prod()),
        "iscrowd": 0,
    }
