"""Does a head of the teacher's kind help the student? A two-stage head on its pyramid, while it trains.

    python benchmarks/experiments/head.py configs/digits/compare-unlike.yaml --seeds 0 1 2

HEAD (Wang et al., ECCV 2022) trains a student with an assistant: a head like the teacher's on the student's own
pyramid. Here it is torchvision's RPN with RoI heads, from random weights, trained by its own detection loss times
``weight`` and thrown away afterwards. With ``imitate`` its class scores and boxes also follow the teacher's head on the
same proposals. The runs are those of ``dfmsd compare`` with the same config, teacher and seeds, whose AP belongs next
to these. Writes ``benchmarks/results/head-<data>.json`` after each run and skips the runs that it has.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from _runs import run_missing
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import MultiScaleRoIAlign

from dfmsd.comparison.config import CompareConfig
from dfmsd.detectors.base import Detector
from dfmsd.detectors.torchvision.base import whole
from dfmsd.detectors.torchvision.two_stage import TwoStageDetector
from dfmsd.distillation.passes import StudentPass
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.configfile import read_config
from dfmsd.engine.run import Result, distill
from dfmsd.types import Target

HIDDEN = 256
"""Width of the assistant's layers after the pooling."""
LEVELS = 3
"""Levels that it uses, finest first, as the teacher's RoI heads do."""


class Assistant(nn.Module):
    """RPN and RoI heads on the first levels of a student's pyramid.

    Args:
        student: the student, whose levels it reads.
    """

    def __init__(self, student: Detector) -> None:
        super().__init__()
        levels = student.levels[:LEVELS]
        self.names = [level.name for level in levels]
        backbone: Any = nn.Identity()
        backbone.out_channels = levels[0].channels
        anchors = AnchorGenerator([(4 * level.stride,) for level in levels], [(0.5, 1.0, 2.0)] * len(levels))
        outputs = len(student.class_names) + 1
        pool = MultiScaleRoIAlign(self.names, output_size=7, sampling_ratio=2)
        model = FasterRCNN(
            backbone,
            None,  # the predictor says it
            rpn_anchor_generator=anchors,
            box_roi_pool=pool,
            box_head=TwoMLPHead(backbone.out_channels * 49, HIDDEN),
            box_predictor=FastRCNNPredictor(HIDDEN, outputs),
            rpn_post_nms_top_n_train=300,
            box_batch_size_per_image=128,
        )
        self.rpn, self.roi_heads = model.rpn, model.roi_heads

    def forward(
        self, images: Tensor, pyramid: dict[str, Tensor], targets: Sequence[Target], teacher: TwoStageDetector | None
    ) -> dict[str, Tensor]:
        """Return its losses, and its difference from the teacher's head if there is one."""
        heads, size = self.roi_heads, [(images.shape[-2], images.shape[-1])] * len(images)
        maps = {name: pyramid[name] for name in self.names}
        known = [{"boxes": target["boxes"], "labels": target["labels"] + 1} for target in targets]
        proposals, named = self.rpn(whole(images), maps, known)
        proposals, _, labels, boxes = heads.select_training_samples(proposals, known)
        logits, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, proposals, size)))
        classes, regression = fastrcnn_loss(logits, deltas, labels, boxes)
        named = {**named, "classes": classes, "boxes": regression}
        if teacher is not None:
            with torch.no_grad():
                of_teacher = teacher.model.roi_heads
                pooled = of_teacher.box_roi_pool(teacher._maps(images), proposals, size)
                wanted, moved = of_teacher.box_predictor(of_teacher.box_head(pooled))
                probabilities = wanted.softmax(-1)
            named["imitated_classes"] = F.kl_div(logits.log_softmax(-1), probabilities, reduction="batchmean")
            error = F.smooth_l1_loss(deltas, moved, reduction="none").view(len(deltas), -1, 4).sum(-1)
            named["imitated_boxes"] = (error * probabilities)[:, 1:].sum() / len(deltas)
        return named


class AssistedTask(DistillationTask):
    """A distillation whose student has an assistant.

    Attributes:
        weight: of the assistant's losses.
        imitate: whether the assistant imitates the teacher's head.
    """

    weight = 1.0
    imitate = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        with torch.random.fork_rng():
            self.trainable["assistant"] = Assistant(self.student)

    def run_student(self, images: Tensor, targets: Sequence[Target]) -> StudentPass:
        """Keep the student's features for the assistant."""
        self.passed = super().run_student(images, targets)
        return self.passed

    def forward(self, images: Tensor, targets: Sequence[Target], *rest: Any, **named_rest: Any) -> dict[str, Tensor]:
        """Add the losses of the assistant."""
        named = super().forward(images, targets, *rest, **named_rest)
        detector = self.lessons[0].teacher.detector
        teacher = detector if self.imitate and isinstance(detector, TwoStageDetector) else None
        assistant = self.trainable["assistant"]
        of_assistant = assistant(images[: len(targets)], self.passed.labeled, targets, teacher)
        return named | {f"assistant/{name}": self.weight * value for name, value in of_assistant.items()}


def main() -> None:
    """Run what is missing and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--method", default="dfmsd@T2", help="as in a comparison (default: %(default)s)")
    parser.add_argument("--weights", nargs="+", type=float, default=[0.3])
    parser.add_argument("--imitate", action="store_true", help="the assistant follows the teacher's head")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    config = read_config(CompareConfig, options.config)
    for weight in options.weights:
        assisted = type("Assisted", (AssistedTask,), {"weight": weight, "imitate": options.imitate})

        def run(config: DistillConfig, _seed: int, task: type = assisted) -> Result:
            with patch("dfmsd.engine.build.DistillationTask", task):
                return distill(config, overwrite=True)

        row = f"weight {weight:g}{', imitating' if options.imitate else ''}"
        run_missing(config, "head", [(seed, row, options.method) for seed in options.seeds], run)


if __name__ == "__main__":
    main()
