"""Faster R-CNN up to its final non-maximum suppression."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import roi_align

from dfmsd.detectors.torchvision.two_stage import TwoStageDetector
from dfmsd.exporting.decoders import RawDetections, TorchvisionDecoder, above
from dfmsd.exporting.nms import gather_rows, nms_scores

MIN_BOX_SIDE = 1e-2
"""Minimum side of a detection in pixels, as in torchvision."""


class TwoStageDecoder(TorchvisionDecoder):
    """Faster R-CNN: proposals after suppression on each level, then one box per proposal and class."""

    anchors: Tensor

    def __init__(self, detector: TwoStageDetector, side: int) -> None:
        super().__init__(detector, side)
        self.counts = self.store_anchors(self.model.rpn.anchor_generator)
        self.store_thresholds(self.model.roi_heads)

    def forward(self, images: Tensor) -> RawDetections:
        """Decode ``N x 3 x side x side``, RGB in [0, 1]."""
        maps, heads = self.maps(images), self.model.roi_heads
        proposals, valid = self._proposals(list(maps.values()))
        image, slot = torch.where(valid > 0)
        regions = proposals[image, slot]
        logits, box_deltas = heads.box_predictor(heads.box_head(self._pool(maps, image, regions)))
        scores = above(logits.softmax(dim=1)[:, 1:], self.score_threshold)
        boxes = heads.box_coder.decode_single(box_deltas, regions).unflatten(1, (-1, 4))[:, 1:].clamp(0, self.side)
        scores = torch.where(((boxes[..., 2:] - boxes[..., :2]) >= MIN_BOX_SIDE).all(dim=2), scores, 0.0)
        classes = scores.shape[1]
        blank = valid.unsqueeze(2).expand(-1, -1, classes)
        scores = torch.zeros_like(blank).index_put((image, slot), scores).flatten(1)
        boxes = torch.zeros_like(blank.unsqueeze(3).expand(-1, -1, -1, 4)).index_put((image, slot), boxes)
        labels = torch.arange(1, classes + 1, device=scores.device).repeat(valid.shape[1])
        return boxes.flatten(1, 2), scores, labels.expand_as(scores)

    def _proposals(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the best proposals, ``N x P x 4``, and values that order them, ``N x P``, 0 for missing ones.

        The values are differences of logits: probabilities of a sure detector are 1 for many, which a runtime may then
        suppress in any order, while torchvision keeps that of the logits.
        """
        rpn = self.model.rpn
        per_level, deltas = rpn.head(levels)
        objectness, deltas = concat_box_prediction_layers(per_level, deltas)
        objectness = objectness.view(levels[0].shape[0], -1)
        deltas = deltas.view(levels[0].shape[0], -1, 4)
        candidates, start = [], 0
        for level, values in enumerate(objectness.split(self.counts, dim=1)):
            best, index = values.topk(min(rpn.pre_nms_top_n(), values.shape[1]), dim=1)
            candidates.append((best, index + start, torch.full_like(index, level)))
            start += values.shape[1]
        logits, index, groups = (torch.cat(parts, dim=1) for parts in zip(*candidates, strict=True))
        anchors = self.anchors[index]
        boxes = rpn.box_coder.decode_single(gather_rows(deltas, index).flatten(0, 1), anchors.flatten(0, 1))
        boxes = boxes.view_as(anchors).clamp(0, self.side)
        large = ((boxes[..., 2:] - boxes[..., :2]) >= rpn.min_size).all(dim=2)
        above_lowest = logits - logits.amin(dim=1, keepdim=True) + 1  # positive, so that 0 stands for none
        scores = torch.where(large & (logits.sigmoid() >= rpn.score_thresh), above_lowest, 0.0)
        scores = nms_scores(boxes, scores, groups, rpn.nms_thresh, len(levels), float(self.side))
        best, index = scores.topk(min(rpn.post_nms_top_n(), scores.shape[1]), dim=1)
        return gather_rows(boxes, index), best

    def _pool(self, maps: dict[str, Tensor], image: Tensor, regions: Tensor) -> Tensor:
        """Pool each region from its level, ``R x C x 7 x 7``."""
        pool: Any = self.model.roi_heads.box_roi_pool
        pooled = [maps[name] for name in pool.featmap_names if name in maps]
        rois = torch.cat([image.unsqueeze(1).to(regions), regions], dim=1)
        level_of = pool.map_levels([regions])
        result = regions.new_zeros(regions.shape[0], pooled[0].shape[1], *pool.output_size)
        for level, (values, scale) in enumerate(zip(pooled, pool.scales, strict=True)):
            (index,) = torch.where(level_of == level)
            aligned = roi_align(values, rois[index], pool.output_size, scale, pool.sampling_ratio)
            result = result.index_put((index,), aligned)
        return result
