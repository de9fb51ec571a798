"""Adapter of Faster R-CNN, and of Mask R-CNN's boxes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

from dfmsd.detectors.levels import DRY_RUN_SIZE, dry_run
from dfmsd.detectors.sizes import SizeRange, two_stage_ranges
from dfmsd.detectors.torchvision.base import Float32Anchors, TorchvisionDetector, TorchvisionTarget


class TwoStageDetector(TorchvisionDetector):
    """Faster R-CNN, or the boxes of Mask R-CNN: region proposals, then a head on each region.

    Mask R-CNN's mask branch is not run: its weights stay in the model, frozen, and the model's ``mask_roi_pool``, which
    has no weights, is removed, so that torchvision's code skips the branch.
    """

    class_layers = r"roi_heads\.(box_predictor|mask_predictor\.mask_fcn_logits)\."
    background = True

    def __init__(self, model: FasterRCNN, class_names: Sequence[str], label_ids: Sequence[int]) -> None:
        super().__init__(model, class_names, label_ids, model.roi_heads.box_predictor.cls_score.out_features)
        self.model.rpn.anchor_generator = Float32Anchors(model.rpn.anchor_generator)
        # under autocast, heads return bfloat16, and torchvision would decode pixel coordinates in it
        self.model.rpn.head.register_forward_hook(_float32_outputs)
        self.model.roi_heads.box_predictor.register_forward_hook(_float32_outputs)
        self._fix_pooling_scales()
        if isinstance(model, MaskRCNN):
            heads = self.model.roi_heads
            heads.mask_roi_pool = None
            for part in (heads.mask_head, heads.mask_predictor):
                part.requires_grad_(False)

    def _fix_pooling_scales(self) -> None:
        """Make the pooler infer its scales from an unpadded input.

        It infers them once, from the image sizes of the first call, and would keep wrong ones if these images filled
        only half of the padded input.
        """
        pool = self.model.roi_heads.box_roi_pool
        pool.scales = pool.map_levels = None
        maps = dry_run(self.model.backbone)
        boxes = next(iter(maps.values())).new_tensor([[0.0, 0.0, DRY_RUN_SIZE, DRY_RUN_SIZE]])
        pool(maps, [boxes], [(DRY_RUN_SIZE, DRY_RUN_SIZE)])

    @property
    def _level_head(self) -> nn.Module:
        """The head of the proposals; that of the boxes runs on a number of regions that changes."""
        head: nn.Module = self.model.rpn.head
        return head

    def _read_sizes(self) -> list[SizeRange] | None:
        pool, first_bound = self.model.roi_heads.box_roi_pool, None
        if isinstance(pool, MultiScaleRoIAlign):
            # torchvision pools from level floor(canonical_level + log2(size / canonical_scale)); level = log2(stride)
            finest = math.log2(self.levels[0].stride)
            first_bound = pool.canonical_scale * 2 ** (finest + 1 - pool.canonical_level)
        return two_stage_ranges(self.model.rpn.anchor_generator.sizes, first_bound)

    def _losses(
        self, images: ImageList, maps: dict[str, Tensor], targets: list[TorchvisionTarget]
    ) -> dict[str, Tensor]:
        with self._head_mode(training=True):
            proposals, losses = self.model.rpn(images, maps, targets)
            _, box_losses = self.model.roi_heads(maps, proposals, images.image_sizes, targets)
        return {**losses, **box_losses}

    def _detect(self, images: ImageList, maps: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        with self._head_mode(training=False):
            proposals, _ = self.model.rpn(images, maps)
            results, _ = self.model.roi_heads(maps, proposals, images.image_sizes)
        return cast(list[dict[str, Tensor]], results)

    @contextmanager
    def _head_mode(self, training: bool) -> Iterator[None]:
        """Set the two flags by which torchvision chooses between losses and detections; layers keep theirs."""
        parts = (self.model.rpn, self.model.roi_heads)
        before = [part.training for part in parts]
        for part in parts:
            part.training = training
        try:
            yield
        finally:
            for part, flag in zip(parts, before, strict=True):
                part.training = flag


def _float32_outputs(_module: nn.Module, _args: Any, output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float()
    return type(output)(_float32_outputs(_module, _args, part) for part in output)
