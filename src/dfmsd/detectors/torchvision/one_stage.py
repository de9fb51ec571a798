"""Adapter of FCOS, RetinaNet and GFL."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.image_list import ImageList

from dfmsd.detectors.dense import HeadPass
from dfmsd.detectors.sizes import SizeRange, anchor_ranges, ranges_between
from dfmsd.detectors.torchvision.base import Float32Anchors, TorchvisionDetector, TorchvisionTarget, whole
from dfmsd.detectors.torchvision.gfl import GFL
from dfmsd.detectors.torchvision.heads import TorchvisionHead, can_be_cut, total_centerness
from dfmsd.detectors.torchvision.soft import soft_classification
from dfmsd.types import FeaturePyramid, Target

FCOS_UPPER = 8
"""Largest distance of a box's sides that torchvision's FCOS assigns to a level, relative to the level's anchor."""


class OneStageDetector(TorchvisionDetector):
    """FCOS, RetinaNet or GFL: a dense head on every level."""

    class_layers = r"head\.classification_head\.cls_logits\."

    def __init__(self, model: FCOS | RetinaNet, class_names: Sequence[str], label_ids: Sequence[int]) -> None:
        super().__init__(model, class_names, label_ids, model.head.classification_head.num_classes)
        self.model.anchor_generator = Float32Anchors(model.anchor_generator)

    @property
    def dense_head(self) -> TorchvisionHead | None:
        """The head, where its two parts are torchvision's own or GFL's."""
        strides = [int(level.stride) for level in self.levels]
        return TorchvisionHead(self.model, self.class_names, strides) if can_be_cut(self.model) else None

    @property
    def soft_targets(self) -> bool:
        """Whether the head's loss is torchvision's own or GFL's, which take the ``scores`` of targets."""
        return can_be_cut(self.model)

    def forward_with_head(
        self, images: Tensor, targets: Sequence[Target], reused: int
    ) -> tuple[FeaturePyramid, dict[str, Tensor], HeadPass]:
        """Return the results of `forward` and, from the same pass, the head's features ``reused`` convolutions early.

        Raises:
            DfmsdError: A box has no area, or the head is neither torchvision's nor GFL's.
        """
        head = self.dense_head
        if head is None:
            return super().forward_with_head(images, targets, reused)
        library_targets, pyramid = self._to_library_targets(targets), self._pyramid(self._maps(images))
        towers = {name: head.towers(level, reused) for name, level in pyramid.items()}
        levels = [head.at(index).outputs(value, reused) for index, value in enumerate(towers.values())]
        outputs = {name: torch.cat([level[name] for level in levels], dim=1).float() for name in levels[0]}
        anchors, counts = self._anchors(whole(images), list(pyramid.values()))
        matched, near = self._match_and_near(library_targets, outputs, anchors, counts)
        losses = self._compute_loss(library_targets, outputs, anchors, matched)
        assigned = torch.stack(matched)
        valid = assigned != Matcher.BETWEEN_THRESHOLDS

        def by_level(values: Tensor, dim: int = 1) -> dict[str, Tensor]:
            return dict(zip(pyramid, torch.split(values, counts, dim), strict=True))

        head_pass = HeadPass(
            towers,
            by_level(outputs["cls_logits"]),
            by_level(outputs["bbox_regression"]),
            by_level(anchors[0], dim=0),
            by_level(valid),
            by_level(assigned >= 0),
            by_level(near),
            self._positives(library_targets, anchors[0], assigned),
        )
        return pyramid, losses, head_pass

    def _read_sizes(self) -> list[SizeRange] | None:
        """Read the sizes off the anchors.

        FCOS limits the distance from a cell to the farthest side of its box instead, which is between half of the box's
        longer side and all of it. Its limits count as sizes, unchanged.
        """
        anchors: Sequence[Sequence[float]] = self.model.anchor_generator.sizes
        if isinstance(self.model, FCOS):
            return ranges_between([FCOS_UPPER * anchor for (anchor,) in anchors[:-1]])
        return anchor_ranges(anchors)

    def _losses(
        self, images: ImageList, maps: dict[str, Tensor], targets: list[TorchvisionTarget]
    ) -> dict[str, Tensor]:
        outputs, anchors, counts = self._heads(images, maps)
        matched = self._match(targets, outputs, anchors, counts)
        return self._compute_loss(targets, outputs, anchors, matched)

    def _compute_loss(
        self,
        targets: list[TorchvisionTarget],
        outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched: list[Tensor],
    ) -> dict[str, Tensor]:
        """Return the head's losses; GFL's takes scores itself."""
        losses: dict[str, Tensor] = self.model.head.compute_loss(targets, outputs, anchors, matched)
        if "scores" in targets[0] and not isinstance(self.model, GFL):
            losses["classification"] = soft_classification(self.model, targets, outputs["cls_logits"], matched)
        return losses

    def _match(
        self, targets: list[TorchvisionTarget], outputs: dict[str, Tensor], anchors: list[Tensor], counts: list[int]
    ) -> list[Tensor]:
        """Return the index of each anchor's object in each image, below 0 for none.

        torchvision's models pass the matches to their head's ``compute_loss``; a stand-in for the head returns them.
        """
        if isinstance(self.model, GFL):
            return self.model.match(targets, anchors, counts)
        head = SimpleNamespace(compute_loss=lambda _targets, _outputs, _anchors, matched: matched)
        model = SimpleNamespace(head=head)
        if isinstance(self.model, FCOS):
            model.center_sampling_radius = self.model.center_sampling_radius
            matches: list[Tensor] = FCOS.compute_loss(model, targets, outputs, anchors, counts)
        else:
            model.proposal_matcher = self.model.proposal_matcher
            matches = RetinaNet.compute_loss(model, targets, outputs, anchors)
        return matches

    def _match_and_near(
        self, targets: list[TorchvisionTarget], outputs: dict[str, Tensor], anchors: list[Tensor], counts: list[int]
    ) -> tuple[list[Tensor], Tensor]:
        """Return the result of `_match` and, ``N x A``, the overlap of anchors that nearly match an object."""
        if isinstance(self.model, GFL):
            return self.model.match_and_near(targets, anchors, counts)
        matched = self._match(targets, outputs, anchors, counts)
        return matched, anchors[0].new_zeros(()).expand(len(matched), len(anchors[0]))

    def _positives(self, targets: list[TorchvisionTarget], anchors: Tensor, assigned: Tensor) -> Tensor:
        positive = assigned >= 0
        if not isinstance(self.model, FCOS):
            return positive.sum()
        pairs = zip(targets, assigned, strict=True)
        boxes = [target["boxes"][index.clamp(min=0)] if len(target["boxes"]) else anchors for target, index in pairs]
        return total_centerness(self.model.box_coder, anchors, torch.stack(boxes), positive)

    def _detect(self, images: ImageList, maps: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        outputs, anchors, counts = self._heads(images, maps)
        split_outputs = {name: list(torch.split(output, counts, dim=1)) for name, output in outputs.items()}
        split_anchors = [list(torch.split(anchor, counts)) for anchor in anchors]
        results: list[dict[str, Tensor]] = self.model.postprocess_detections(
            split_outputs, split_anchors, images.image_sizes
        )
        return results

    def _heads(self, images: ImageList, maps: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[Tensor], list[int]]:
        """Return head outputs ``N x A x ...``, the anchors of each image, and the number of anchors on each level."""
        levels = list(maps.values())
        outputs = {name: output.float() for name, output in self.model.head(levels).items()}
        return outputs, *self._anchors(images, levels)

    def _anchors(self, images: ImageList, levels: list[Tensor]) -> tuple[list[Tensor], list[int]]:
        generator = self.model.anchor_generator
        per_cell = generator.num_anchors_per_location()
        counts = [level.shape[2] * level.shape[3] * cell for level, cell in zip(levels, per_cell, strict=True)]
        return generator(images, levels), counts
