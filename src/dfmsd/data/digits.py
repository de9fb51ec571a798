"""Built-in data set: handwritten digits on photographs, in the COCO layout."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dfmsd.errors import DfmsdError
from dfmsd.utils.cachedir import cache_root

logger = logging.getLogger("dfmsd")

VERSION = 2
"""Incremented whenever the same parameters produce other images, so that cached folders are not reused."""
DEFAULTS = {"train": 600, "val": 150, "size": 128, "seed": 0}
"""Parameters of the data set named ``digits``."""
TRAIN_SHARE = 0.7
"""Share of the digits, and of each photograph's width, that belongs to the train split."""
DIGIT_SIZES = (1 / 4, 7 / 16)
"""Smallest and largest side of a digit, relative to the image."""
PHOTO_BRIGHTNESS = 0.5
"""Factor that dims the photographs; the contrast lets a small model learn within minutes."""
DIGIT_BRIGHTNESS = 0.7
"""Minimum of each color channel of a digit, in 0..1."""
MAX_DIGITS = 7
"""Maximum number of digits in an image."""

Array = NDArray[np.float32]
Pixels = NDArray[np.uint8]


def cached_digits() -> Path:
    """Return the folder of the default digits, created on first use in ``$DFMSD_CACHE`` or ``~/.cache/dfmsd``."""
    digest = hashlib.sha256(json.dumps([VERSION, DEFAULTS], sort_keys=True).encode()).hexdigest()[:12]
    root = cache_root() / f"digits-{digest}"
    if not root.is_dir():
        make_digits(root, **DEFAULTS)
        logger.info("digits data set: drawn into %s", root)
    return root


def make_digits(root: str | Path, train: int = 600, val: int = 150, size: int = 128, seed: int = 0) -> Path:
    """Paste handwritten digits of several sizes and colors onto photographs, both real.

    There are ten classes, ``0`` to ``9``. Each image has 0 to 7 bright digits, 1/4 to 7/16 of its side high, on a
    dimmed photograph. The splits share neither digits nor regions of the photographs. The folder is created in one
    step.

    Args:
        root: Folder to create; it must not exist.
        train: Number of train images.
        val: Number of val images.
        size: Side of the square images in pixels, at least 64.
        seed: Seed; the same parameters produce the same pixels.

    Raises:
        DfmsdError: The folder exists, a number is out of range, or scikit-learn, which contains the digits and
            photographs, is missing.
    """
    root = Path(root).expanduser()
    if train < 1 or val < 1 or size < 64 or seed < 0:
        raise DfmsdError(
            f"digits: expected train >= 1, val >= 1, size >= 64, seed >= 0, got {train}, {val}, {size}, {seed}"
        )
    if root.exists():
        raise DfmsdError(f"digits: {root} exists already; remove it or name another folder")
    if importlib.util.find_spec("sklearn") is None:
        raise DfmsdError(
            'digits: scikit-learn is not installed; run `pip install "dfmsd[demo]"`, or set data.root to your data'
        )
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    except OSError as error:
        raise DfmsdError(
            f"digits: cannot write to {root.parent} ({error}); set DFMSD_CACHE to a writable folder"
        ) from error
    try:
        for number, (split, count) in enumerate((("train", train), ("val", val))):
            _write_split(work, split, count, size, np.random.default_rng((seed, number)))
        work.chmod(0o755)
        try:
            work.rename(root)
        except OSError:
            if not root.is_dir():  # otherwise another process has just created the same images
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return root


def _write_split(root: Path, split: str, count: int, size: int, rng: np.random.Generator) -> None:
    glyphs, classes, photos = _sources(split)
    (root / split).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, count + 1):
        name = f"{image_id:06d}.png"
        canvas = _background(photos, size, rng)
        boxes: list[tuple[int, int, int, int]] = []
        for pick in rng.integers(len(glyphs), size=rng.integers(MAX_DIGITS + 1)):
            box = _paste(canvas, glyphs[pick], boxes, rng)
            if box is not None:
                boxes.append(box)
                x1, y1, x2, y2 = box
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": int(classes[pick]) + 1,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": 0,
                    }
                )
        Image.fromarray((canvas * 255).round().astype(np.uint8)).save(root / split / name, compress_level=1)
        images.append({"id": image_id, "file_name": name, "width": size, "height": size})
    content = {
        "info": {
            "description": "scikit-learn's handwritten digits on its photographs china.jpg and flower.jpg (CC BY 2.0)"
        },
        "categories": [{"id": digit + 1, "name": str(digit)} for digit in range(10)],
        "images": images,
        "annotations": annotations,
    }
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")


def _sources(split: str) -> tuple[Array, NDArray[np.int64], list[Pixels]]:
    """Return a split's glyphs, ``N x 8 x 8`` in 0..1, their digits, and its part of each photograph."""
    from sklearn.datasets import load_digits, load_sample_images  # optional and slow to import

    glyphs, classes = load_digits(return_X_y=True)
    glyphs = (glyphs.reshape(-1, 8, 8) / 16).astype(np.float32)
    photos = load_sample_images().images
    is_train = np.random.default_rng(VERSION).random(len(glyphs)) < TRAIN_SHARE
    in_split = is_train if split == "train" else ~is_train
    columns = [int(photo.shape[1] * TRAIN_SHARE) for photo in photos]
    parts = [photo[:, :x] if split == "train" else photo[:, x:] for photo, x in zip(photos, columns, strict=True)]
    return glyphs[in_split], classes[in_split], parts


def _background(photos: list[Pixels], size: int, rng: np.random.Generator) -> Array:
    photo = photos[rng.integers(len(photos))]
    side = int(rng.integers(96, min(photo.shape[:2]) + 1))
    top, left = (int(rng.integers(length - side + 1)) for length in photo.shape[:2])
    crop = photo[top : top + side, left : left + side]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    return (_resize(crop, size) / 255 * PHOTO_BRIGHTNESS).astype(np.float32)


def _resize(image: NDArray[Any], side: int) -> NDArray[Any]:
    return np.array(Image.fromarray(np.ascontiguousarray(image)).resize((side, side), Image.Resampling.BICUBIC))


def _paste(
    canvas: Array, glyph: Array, boxes: list[tuple[int, int, int, int]], rng: np.random.Generator
) -> tuple[int, int, int, int] | None:
    """Paint a digit where it covers no other; return its tight box, xyxy, or None if there is no room."""
    size = len(canvas)
    low, high = DIGIT_SIZES
    side = round(size * low * (high / low) ** rng.random())
    alpha = ((_resize(glyph, side) - 0.25) * 2).clip(0, 1)
    rows, columns = np.flatnonzero((alpha > 0.5).any(axis=1)), np.flatnonzero((alpha > 0.5).any(axis=0))
    for _ in range(20):
        top, left = (int(x) for x in rng.integers(size - side + 1, size=2))
        box = (left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1)
        if not any(_overlap(box, other) for other in boxes):
            window = canvas[top : top + side, left : left + side]
            window += alpha[..., None] * (rng.uniform(DIGIT_BRIGHTNESS, 1, size=3).astype(np.float32) - window)
            return box
    return None


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])
