"""Adapter of SSD and SSDLite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

from dfmsd.detectors.levels import read_levels
from dfmsd.detectors.sizes import SizeRange, anchor_ranges
from dfmsd.detectors.torchvision.base import TorchvisionDetector, TorchvisionTarget, in_float32
from dfmsd.errors import DfmsdError
from dfmsd.types import LevelSpec

DRY_RUN_SIDE = 512
"""Large enough for the sixth level, of stride 512, to have one cell."""
TOO_SMALL = {
    "Kernel size can't be greater": "they are too small for its convolutions: raise data.image_size",
    "Expected more than 1 value per channel": "one image is too few for the batch normalization of its coarsest level:"
    " raise data.batch_size to 2 or more",
}
"""PyTorch's message about an input that is too small -> what to do."""


class SSDDetector(TorchvisionDetector):
    """SSD or SSDLite: a separate head on each of the backbone's maps, which are the levels.

    A level's stride is the step of its default boxes if the model states them, as SSD300 does (8, 16, 32, 64, 100,
    300), else that of its convolutions, as in SSDLite (16, 32, ..., 512).

    Default boxes are fractions of the input's sides. torchvision stretches each image to a square of the model's
    original size, 300 or 320 pixels; here the padded batch is used unchanged, so boxes grow with the input, are
    stretched with it if it is not square, and vary between batches with ``data.pad: batch``. At other sizes than the
    original one, they are spread evenly over each map, as SSDLite's always are: SSD300's steps only fit 300 pixels.
    """

    class_layers = r"head\.classification_head\.module_list\.\d+\.(1\.)?(weight|bias)$"
    background = True

    def __init__(self, model: SSD, class_names: Sequence[str], label_ids: Sequence[int]) -> None:
        super().__init__(model, class_names, label_ids, model.head.classification_head.num_columns)
        boxes = model.anchor_generator
        self.spread_boxes = DefaultBoxGenerator(boxes.aspect_ratios, scales=boxes.scales, clip=boxes.clip)

    def _read_levels(self) -> tuple[LevelSpec, ...]:
        steps = self.model.anchor_generator.steps
        side = max(self._original_size) if steps else DRY_RUN_SIDE
        return read_levels(self.model.backbone, side=side, strides=steps)

    def _read_sizes(self) -> list[SizeRange] | None:
        """Read the sizes off the default boxes, in pixels of an image of the original size."""
        scales, side = self.model.anchor_generator.scales, math.sqrt(math.prod(self._original_size))
        # torchvision: a level's square boxes have its scale, and the geometric mean of its scale and the next
        boxes = [(side * scale, side * math.sqrt(scale * following)) for scale, following in pairwise(scales)]
        return anchor_ranges(boxes)

    @property
    def _original_size(self) -> tuple[int, int]:
        """Height and width that the model was designed for."""
        width, height = self.model.transform.fixed_size
        return height, width

    def _maps(self, images: Tensor) -> dict[str, Tensor]:
        try:
            return super()._maps(images)
        except (RuntimeError, ValueError) as error:
            remedy = next((remedy for text, remedy in TOO_SMALL.items() if text in str(error)), None)
            if remedy is None:
                raise
            raise DfmsdError(f"SSD got images of {'x'.join(map(str, images.shape))}; {remedy}") from error

    def _losses(
        self, images: ImageList, maps: dict[str, Tensor], targets: list[TorchvisionTarget]
    ) -> dict[str, Tensor]:
        outputs, boxes = self._heads(images, maps)
        matched = self._match(targets, boxes)
        losses: dict[str, Tensor] = self.model.compute_loss(targets, outputs, boxes, matched)
        return losses

    def _match(self, targets: list[TorchvisionTarget], boxes: list[Tensor]) -> list[Tensor]:
        """Return the index of each default box's object in each image, or -1."""
        return [
            self.model.proposal_matcher(box_iou(target["boxes"], default_boxes))
            if len(target["boxes"])
            else torch.full((len(default_boxes),), -1, device=default_boxes.device)
            for target, default_boxes in zip(targets, boxes, strict=True)
        ]

    def _detect(self, images: ImageList, maps: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        results: list[dict[str, Tensor]] = self.model.postprocess_detections(
            *self._heads(images, maps), images.image_sizes
        )
        return results

    def _heads(self, images: ImageList, maps: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return head outputs ``N x boxes x ...`` and the default boxes of each image."""
        levels = list(maps.values())
        outputs = {name: output.float() for name, output in self.model.head(levels).items()}
        is_original = images.tensors.shape[-2:] == self._original_size
        boxes = self.model.anchor_generator if is_original else self.spread_boxes
        return outputs, boxes(images, in_float32(levels))
