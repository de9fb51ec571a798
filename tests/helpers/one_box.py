"""A detector that no library knows, with its loss and decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

import dfmsd

CLASSES = ("square", "disc")


class OneBox(nn.Module):
    """A custom detector of one box per image, from the mean of all cells."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
        self.head = nn.Linear(8, 4 + len(CLASSES))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        predicted = self.head(self.body(pixels).mean((2, 3)))
        center, size = predicted[:, :2].sigmoid() * 64, predicted[:, 2:4].sigmoid() * 64
        return torch.cat([center - size / 2, center + size / 2], 1), predicted[:, 4:]


def loss(model: nn.Module, pixels: Tensor, targets: Sequence[dfmsd.Target]) -> dict[str, Tensor]:
    boxes, logits = model(pixels)
    some = [index for index, target in enumerate(targets) if len(target["boxes"])]
    wanted = torch.stack([targets[index]["boxes"][0] for index in some])
    labels = torch.stack([targets[index]["labels"][0] for index in some])
    return {
        "box": generalized_box_iou_loss(boxes[some], wanted, reduction="mean"),
        "class": nn.functional.cross_entropy(logits[some], labels),
    }


def decode(model: nn.Module, pixels: Tensor, sizes: Sequence[tuple[int, int]]) -> list[dfmsd.Detections]:
    boxes, logits = model(pixels)
    scores, labels = logits.softmax(1).max(1)
    return [
        {"boxes": box[None], "scores": score[None], "labels": label[None]}
        for box, score, label in zip(boxes, scores, labels, strict=True)
    ]
