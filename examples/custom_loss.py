"""Register a loss of your own and use it by name, in a run or a config."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

import dfmsd
from dfmsd.losses import LossContext, Method, register


@dataclass(frozen=True)
class CosineOptions:
    """Options of the loss: the keys that a config may set."""

    scale: float = 1.0


@register("cosine")
class Cosine(Method):
    """One minus the cosine between student and teacher in each cell of a level."""

    Options = CosineOptions
    terms = ("cosine",)

    def __init__(self, channels: int, options: CosineOptions) -> None:
        super().__init__(channels, options)
        self.scale = options.scale

    def forward(self, student: Tensor, teacher: Tensor, context: LossContext) -> dict[str, Tensor]:
        """Compare an aligned student and a teacher, both ``N x C x H x W``."""
        return {"cosine": self.scale * (1 - F.cosine_similarity(student, teacher, dim=1)).mean()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/examples/custom_loss"), help="folder of the two runs")
    parser.add_argument("--epochs", type=int, default=2, help="of each run")
    arguments = parser.parse_args()
    data = dfmsd.DataConfig(root="digits", image_size=128, batch_size=8, flip=0)
    teacher = dfmsd.DetectorConfig(arch="fcos", backbone="tf_efficientnet_lite0", fpn_channels=64, head_convs=2)
    student = dfmsd.DetectorConfig(arch="fcos", backbone="mobilenetv3_small_050", fpn_channels=64, head_convs=2)
    dfmsd.train(teacher, data, arguments.out / "teacher", epochs=arguments.epochs)
    result = dfmsd.distill(
        student,
        arguments.out / "teacher",
        data=data,
        out=arguments.out / "student",
        epochs=arguments.epochs,
        loss={"name": "cosine", "scale": 2.0},
        allow_weak_teacher=True,  # it has had two epochs
    )
    print(f"AP {100 * (result.metrics['AP'] or 0):.1f}")
