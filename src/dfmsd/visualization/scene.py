"""One image with the maps of all stages and levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dfmsd.detectors import Detector
from dfmsd.utils.shapes import frame_of
from dfmsd.visualization.criteria import StageCriterion
from dfmsd.visualization.maps import LevelMaps, level_maps, mean_pearson


@dataclass(frozen=True)
class Scene:
    """One image and its maps.

    Attributes:
        name: of the image.
        image: ``3 x H x W``, 0..1, padded as the networks see it.
        boxes: ``M x 4``, xyxy; objects for masking enhancement.
        boxes_source: where the boxes come from.
        stages: the losses.
        maps: for each stage, the maps of its levels.
    """

    name: str
    image: Tensor
    boxes: Tensor
    boxes_source: str
    stages: Sequence[StageCriterion]
    maps: Sequence[Sequence[LevelMaps]]

    def describe(self) -> list[str]:
        """Return lines that state what the picture shows, and what is missing and why."""
        lines = [self.name, f"boxes: {self.boxes_source} ({len(self.boxes)})"]
        for stage, maps in zip(self.stages, self.maps, strict=True):
            correlation = mean_pearson(maps)
            suffix = "" if correlation is None else f", mean feature correlation {correlation:.2f}"
            lines.append(f"stage {stage.stage}: teacher {stage.teacher}{suffix}")
            if not stage.trained:
                lines.append(f"no reconstruction: {stage.note}")
            elif all(level.reconstruction_error is None for level in maps):
                lines.append("no reconstruction: this loss does not reconstruct features")
        return lines


def build_scene(
    name: str,
    student: Detector,
    teacher: Detector,
    stages: Sequence[StageCriterion],
    image: Tensor,
    boxes: Tensor,
    boxes_source: str,
    larger: Tensor | None = None,
) -> Scene:
    """Run both detectors on one image and compute the maps of every stage.

    Args:
        name: of the image.
        student: in eval mode.
        teacher: in eval mode.
        stages: the losses.
        image: ``1 x 3 x H x W``, 0..1, padded.
        boxes: ``M x 4``, xyxy in its pixels.
        boxes_source: where the boxes come from, as text.
        larger: the image as the teacher sees it, if it sees more pixels, ``1 x 3 x H' x W'``.
    """
    with torch.no_grad():
        student_features = student.features(image)
        teacher_features = teacher.features(image if larger is None else larger)
    frame = frame_of(image)
    maps = [level_maps(stage, student_features, teacher_features, boxes, frame) for stage in stages]
    return Scene(name, image[0], boxes, boxes_source, stages, maps)
