"""Distill into a model that dfmsd does not know: any `nn.Module` with feature maps, a loss and a decoder."""

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

import dfmsd
from dfmsd import Detections, Target

STRIDE = 8


class CenterPoints(nn.Module):
    """A detector of object centers: class scores and a box size in every cell of stride 8."""

    def __init__(self, classes: int, widths: Sequence[int] = (3, 32, 64, 64, 64)) -> None:
        super().__init__()
        blocks = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairwise(widths)]
        self.stem, self.fine, self.coarse = nn.Sequential(*blocks[:2]), blocks[2], blocks[3]
        self.head = nn.Conv2d(widths[-1], classes + 2, 1)
        nn.init.constant_(self.head.bias[:classes], -4.0)  # no object, at first

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``N x classes x H/8 x W/8`` and the logarithm of width and height in cells."""
        fine = self.fine(self.stem(pixels))
        merged = fine + F.interpolate(self.coarse(fine), fine.shape[-2:])
        logits, sizes = self.head(merged).tensor_split([-2], dim=1)
        return logits, sizes


def loss(model: nn.Module, pixels: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
    """Return the named losses of one forward pass."""
    logits, sizes = model(pixels)
    truth, size_loss, count = torch.zeros_like(logits), sizes.sum() * 0, 1
    for image, target in enumerate(targets):
        low, high = target["boxes"].tensor_split(2, dim=1)
        x, y = ((low + high) / 2 / STRIDE).long().unbind(1)
        truth[image, target["labels"], y, x] = 1
        size_loss = size_loss + (sizes[image, :, y, x].T - ((high - low) / STRIDE).log()).abs().sum()
        count += len(x)
    return {"center": sigmoid_focal_loss(logits, truth, reduction="sum") / count, "size": 0.1 * size_loss / count}


def decode(model: nn.Module, pixels: Tensor, frames: Sequence[tuple[int, int]]) -> list[Detections]:
    """Return the boxes around the 50 strongest local maxima of each image."""
    logits, sizes = model(pixels)
    peaks = logits.sigmoid() * (F.max_pool2d(logits, 3, 1, 1) == logits)
    found: list[Detections] = []
    for heat, size in zip(peaks, sizes, strict=True):
        scores, cells = heat.flatten().topk(min(50, heat.numel()))
        labels, place = cells // heat[0].numel(), cells % heat[0].numel()
        centers = torch.stack([place % heat.shape[2], place // heat.shape[2]], dim=1) + 0.5
        extent = size.flatten(1).T[place].exp() / 2
        boxes = STRIDE * torch.cat([centers - extent, centers + extent], dim=1)
        found.append({"boxes": boxes, "scores": scores, "labels": labels})
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/examples/custom_detector"), help="folder of the runs")
    parser.add_argument("--epochs", type=int, default=6, help="of each run")
    arguments = parser.parse_args()
    data = dfmsd.DataConfig(root="digits", image_size=128, batch_size=8, flip=0)
    names = dfmsd.CocoDataModule(data).class_names
    big = dfmsd.DetectorConfig(arch="fcos", backbone="tf_efficientnet_lite0", fpn_channels=64, head_convs=2)
    dfmsd.train(big, data, arguments.out / "teacher", epochs=arguments.epochs)
    student = dfmsd.ModuleDetector(
        CenterPoints(len(names)),
        ("fine", "coarse"),  # where its feature maps are, finest first
        names,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        loss=loss,
        decode=decode,
    )
    result = dfmsd.distill(
        student, arguments.out / "teacher", data=data, out=arguments.out / "student", epochs=arguments.epochs
    )
    print(f"AP {100 * (result.metrics['AP'] or 0):.1f}, weights in {result.run / 'student.safetensors'}")
