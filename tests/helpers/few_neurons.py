"""Detectors of a few neurons, and tasks built from them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from dfmsd.detectors.base import Detector
from dfmsd.distillation.stages import StageConfig
from dfmsd.distillation.task import DistillationTask
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.types import Detections, FeaturePyramid, LevelSpec, Target

LOSS = {"name": "dfmsd"}
IMAGES = torch.rand(2, 3, 32, 64)
TARGETS: list[Target] = [
    {"boxes": torch.tensor([[4.0, 4.0, 40.0, 20.0]]), "labels": torch.tensor([0])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
]


class FewNeurons(Detector):
    """A detector of a few neurons with all that a teacher must not change by: batch norm, dropout."""

    def __init__(self, channels: int = 2, strides: Sequence[int] = (8, 16), prefix: str = "p") -> None:
        super().__init__()
        self.levels = tuple(LevelSpec(f"{prefix}{stride}", channels, stride) for stride in strides)
        self.class_names = ("thing",)
        self.stem = nn.Conv2d(3, channels, 4, stride=4)
        self.norm = nn.BatchNorm2d(channels)
        self.drop = nn.Dropout(0.5)
        self.seen: list[Tensor] = []

    def features(self, images: Tensor) -> FeaturePyramid:
        self.seen.append(images)
        finest = self.drop(self.norm(self.stem(images - 0.5)))
        return {level.name: avg_pool2d(finest, level.stride // 4) for level in self.levels}

    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[FeaturePyramid, dict[str, Tensor]]:
        pyramid = self.features(images)
        count = torch.tensor([float(len(target["boxes"])) for target in targets])
        finest = pyramid[self.levels[0].name]
        return pyramid, {"count": (finest.mean((1, 2, 3)) - count).square().mean(), "size": finest.square().mean()}

    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        raise NotImplementedError("nothing here detects")


def frozen(channels: int = 3, strides: Sequence[int] = (8, 16), name: str = "big") -> FrozenTeacher:
    return FrozenTeacher(FewNeurons(channels, strides, prefix="t"), name)


def plan(*teachers: FrozenTeacher | Sequence[FrozenTeacher] | None, **loss: object) -> DistillationTask:
    together = [[each] if isinstance(each, FrozenTeacher) else each or () for each in teachers]
    stages = [StageConfig(1, [teacher.name for teacher in stage]) for stage in together]
    return DistillationTask(FewNeurons(), stages, together, {**LOSS, **loss})


SUM = [{"name": "pkd"}, {"name": "fgd", "tau": 0.8}, {"name": "mgd", "pairing": "index"}]


def randomize(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.normal_(parameter)
