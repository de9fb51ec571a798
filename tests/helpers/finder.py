"""A detector that finds the objects of the tiny data set by their colors, and images to label with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from tests.helpers.few_neurons import FewNeurons
from torch import Tensor

from dfmsd.types import Detections

COLORS = {"square": ("red", 0), "disc": ("blue", 2)}


class Finder(FewNeurons):
    """Finds one box of each class: that around all pixels of its color.

    The score is that of the box's place: high on the left, so that an image and its mirror image differ.
    """

    def __init__(self, *class_names: str, scores: tuple[float, float] = (0.9, 0.9)) -> None:
        super().__init__(channels=4, strides=(8, 16, 32), prefix="t")
        self.class_names = class_names or ("square", "disc")
        self.scores = scores

    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        return [self._detect(image[:, :height, :width]) for image, (height, width) in zip(images, sizes, strict=True)]

    def _detect(self, image: Tensor) -> Detections:
        boxes, scores, labels = [], [], []
        for label, name in enumerate(self.class_names):
            strong = image[COLORS[name][1]] - image.sum(dim=0) / 3 > 0.2
            rows, columns = strong.any(dim=1).nonzero(), strong.any(dim=0).nonzero()
            if len(rows):
                box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                left = box[0] + box[2] < image.shape[2]
                boxes.append([float(side) for side in box])
                scores.append(self.scores[0 if left else 1])
                labels.append(label)
        order = torch.tensor(scores).argsort(descending=True)
        return {
            "boxes": torch.tensor(boxes).reshape(-1, 4)[order],
            "scores": torch.tensor(scores)[order],
            "labels": torch.tensor(labels, dtype=torch.int64)[order],
        }


def draw_images(folder: Path) -> Path:
    """Images of 64 x 48 pixels: a square on the left, one on the right, and nothing."""
    (folder / "deep").mkdir(parents=True)
    for name, box in {"left.png": (8, 8, 24, 24), "deep/right.png": (32, 8, 56, 40), "none.png": None}.items():
        image = Image.new("RGB", (64, 48), (128, 128, 128))
        if box:
            ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=COLORS["square"][0])
        image.save(folder / name)
    return folder
