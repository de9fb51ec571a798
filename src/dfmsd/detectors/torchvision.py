"""The detector contract around torchvision's FCOS, RetinaNet and Faster R-CNN, and GFL, which is made of their parts.

torchvision's own ``GeneralizedRCNNTransform`` is left out: batches arrive sized and padded. Everything else is
torchvision's: the parts of a model are called one by one, so that one forward gives pyramid and losses.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from dfmsd.detectors.backbones import DRY_RUN_SIZE, dry_run
from dfmsd.detectors.base import Detector, HeadPass
from dfmsd.detectors.config import DetectorConfig
from dfmsd.detectors.gfl import GFL
from dfmsd.detectors.heads import TorchvisionHead, can_be_cut, total_centerness
from dfmsd.errors import DfmsdError
from dfmsd.types import Detections, FeaturePyramid, LevelSpec, Target

TorchvisionTarget = dict[str, Tensor]


class TorchvisionDetector(Detector):
    """A torchvision detector behind the contract.

    Losses keep torchvision's names. Thresholds of :meth:`detect` are those of the wrapped model
    (``score_thresh``, ``nms_thresh``, ``detections_per_img``).

    Args:
        model: the torchvision model, kept as ``model``; its ``transform`` tells mean and std of its pixels.
        class_names: names of the classes, in the order of the labels.
        label_ids: the model's own label of each class.
        num_outputs: how many labels the model knows, background and unused ones included.
    """

    config: DetectorConfig | None = None
    """What :func:`~dfmsd.detectors.build_detector` was told; ``None`` for other models."""

    label_ids: Tensor
    class_of: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, class_names: Sequence[str], label_ids: Sequence[int], num_outputs: int) -> None:
        super().__init__()
        _check_labels(class_names, label_ids, num_outputs)
        self.model = model
        self.class_names = tuple(class_names)
        class_of = torch.full((num_outputs,), -1)
        class_of[list(label_ids)] = torch.arange(len(label_ids))
        # Not persistent: checkpoints hold torchvision's own state dict, and a model's description the rest.
        self.register_buffer("label_ids", torch.tensor(list(label_ids)), persistent=False)
        self.register_buffer("class_of", class_of, persistent=False)
        self.register_buffer("mean", torch.tensor(self.model.transform.image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.model.transform.image_std).view(3, 1, 1), persistent=False)
        self.levels = read_levels(self.model.backbone)

    def features(self, images: Tensor) -> FeaturePyramid:
        """Run backbone and neck: level name -> ``N x C x H/stride x W/stride``."""
        return self._pyramid(self._maps(images))

    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[FeaturePyramid, dict[str, Tensor]]:
        """Give pyramid and torchvision's losses of one forward pass, in train and in eval mode.

        Raises:
            DfmsdError: if a box has no area; boxes on a GPU are not looked at.
        """
        maps = self._maps(images)
        losses = self._losses(_whole(images), maps, self._own_targets(targets))
        return self._pyramid(maps), losses

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Detect objects, best first; boxes are clipped to each image's unpadded ``(height, width)``."""
        image_list = ImageList(images, [(int(height), int(width)) for height, width in sizes])
        return [self._own_detections(found) for found in self._found(image_list, self._maps(images))]

    @abstractmethod
    def _losses(
        self, images: ImageList, maps: dict[str, Tensor], targets: list[TorchvisionTarget]
    ) -> dict[str, Tensor]: ...

    @abstractmethod
    def _found(self, images: ImageList, maps: dict[str, Tensor]) -> list[dict[str, Tensor]]: ...

    def _maps(self, images: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = self.model.backbone((images - self.mean) / self.std)
        return maps

    def _pyramid(self, maps: dict[str, Tensor]) -> FeaturePyramid:
        return {level.name: value for level, value in zip(self.levels, maps.values(), strict=True)}

    def _own_targets(self, targets: Sequence[Target]) -> list[TorchvisionTarget]:
        boxes = torch.cat([target["boxes"] for target in targets])
        # a look at boxes on a GPU would make every step wait for it; those of a data set were checked on opening it
        if boxes.device.type == "cpu" and bool((boxes[:, 2:] <= boxes[:, :2]).any()):
            raise DfmsdError("a target box has no area, expected x1 < x2 and y1 < y2: remove such boxes from the data")
        return [{"boxes": target["boxes"], "labels": self.label_ids[target["labels"]]} for target in targets]

    def _own_detections(self, found: dict[str, Tensor]) -> Detections:
        labels = self.class_of[found["labels"]]
        keep = labels >= 0
        return {"boxes": found["boxes"][keep], "scores": found["scores"][keep], "labels": labels[keep]}


class OneStageDetector(TorchvisionDetector):
    """FCOS, RetinaNet or GFL: a dense head on every level."""

    def __init__(self, model: FCOS | RetinaNet, class_names: Sequence[str], label_ids: Sequence[int]) -> None:
        super().__init__(model, class_names, label_ids, model.head.classification_head.num_classes)
        self.model.anchor_generator = _Float32Anchors(model.anchor_generator)

    @property
    def dense_head(self) -> TorchvisionHead | None:
        """The head, where its two parts are torchvision's own or GFL's."""
        strides = [level.stride for level in self.levels]
        return TorchvisionHead(self.model, self.class_names, strides) if can_be_cut(self.model) else None

    def forward_with_head(
        self, images: Tensor, targets: Sequence[Target], reused: int
    ) -> tuple[FeaturePyramid, dict[str, Tensor], HeadPass]:
        """Give what `forward` gives and, of the same pass, the features where ``reused`` convolutions are left.

        Raises:
            DfmsdError: a box has no area, or the head is of another make than torchvision's and GFL's.
        """
        head = self.dense_head
        if head is None:
            return super().forward_with_head(images, targets, reused)
        own, pyramid = self._own_targets(targets), self._pyramid(self._maps(images))
        towers = {name: head.towers(level, reused) for name, level in pyramid.items()}
        levels = [head.at(index).outputs(value, reused) for index, value in enumerate(towers.values())]
        outputs = {name: torch.cat([level[name] for level in levels], dim=1).float() for name in levels[0]}
        anchors, counts = self._anchors(_whole(images), list(pyramid.values()))
        matched, near = self._match_and_near(own, outputs, anchors, counts)
        losses: dict[str, Tensor] = self.model.head.compute_loss(own, outputs, anchors, matched)
        assigned = torch.stack(matched)
        valid = assigned != Matcher.BETWEEN_THRESHOLDS

        def by_level(values: Tensor, dim: int = 1) -> dict[str, Tensor]:
            return dict(zip(pyramid, torch.split(values, counts, dim), strict=True))

        found = HeadPass(
            towers,
            by_level(outputs["cls_logits"]),
            by_level(outputs["bbox_regression"]),
            by_level(anchors[0], dim=0),
            by_level(valid),
            by_level(assigned >= 0),
            by_level(near),
            self._positives(own, anchors[0], assigned),
        )
        return pyramid, losses, found

    def _losses(
        self, images: ImageList, maps: dict[str, Tensor], targets: list[TorchvisionTarget]
    ) -> dict[str, Tensor]:
        outputs, anchors, counts = self._heads(images, maps)
        matched = self._match(targets, outputs, anchors, counts)
        losses: dict[str, Tensor] = self.model.head.compute_loss(targets, outputs, anchors, matched)
        return losses

    def _match(
        self, targets: list[TorchvisionTarget], outputs: dict[str, Tensor], anchors: list[Tensor], counts: list[int]
    ) -> list[Tensor]:
        """Give each image's object of each anchor: an index, or below 0 for none.

        torchvision's models match and hand the result on to their head's ``compute_loss``: here the hand-over is all
        that is wanted.
        """
        if isinstance(self.model, GFL):
            return self.model.match(targets, anchors, counts)
        head = SimpleNamespace(compute_loss=lambda _targets, _outputs, _anchors, matched: matched)
        model = SimpleNamespace(head=head)
        if isinstance(self.model, FCOS):
            model.center_sampling_radius = self.model.center_sampling_radius
            found: list[Tensor] = FCOS.compute_loss(model, targets, outputs, anchors, counts)
        else:
            model.proposal_matcher = self.model.proposal_matcher
            found = RetinaNet.compute_loss(model, targets, outputs, anchors)
        return found

    def _match_and_near(
        self, targets: list[TorchvisionTarget], outputs: dict[str, Tensor], anchors: list[Tensor], counts: list[int]
    ) -> tuple[list[Tensor], Tensor]:
        """Give what `_match` gives and, ``N x A``, how much an anchor overlaps an object that it nearly matches."""
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

    def _found(self, images: ImageList, maps: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        outputs, anchors, counts = self._heads(images, maps)
        split_outputs = {name: list(torch.split(output, counts, dim=1)) for name, output in outputs.items()}
        split_anchors = [list(torch.split(anchor, counts)) for anchor in anchors]
        found: list[dict[str, Tensor]] = self.model.postprocess_detections(
            split_outputs, split_anchors, images.image_sizes
        )
        return found

    def _heads(self, images: ImageList, maps: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[Tensor], list[int]]:
        """Give head outputs ``N x anchors x ...``, anchors of each image, and the number of anchors of each level."""
        levels = list(maps.values())
        outputs = {name: output.float() for name, output in self.model.head(levels).items()}
        return outputs, *self._anchors(images, levels)

    def _anchors(self, images: ImageList, levels: list[Tensor]) -> tuple[list[Tensor], list[int]]:
        generator = self.model.anchor_generator
        per_cell = generator.num_anchors_per_location()
        counts = [level.shape[2] * level.shape[3] * cell for level, cell in zip(levels, per_cell, strict=True)]
        return generator(images, levels), counts


class TwoStageDetector(TorchvisionDetector):
    """Faster R-CNN: region proposals, then a head on each region."""

    def __init__(self, model: FasterRCNN, class_names: Sequence[str], label_ids: Sequence[int]) -> None:
        super().__init__(model, class_names, label_ids, model.roi_heads.box_predictor.cls_score.out_features)
        self.model.rpn.anchor_generator = _Float32Anchors(model.rpn.anchor_generator)
        # Under autocast heads give bfloat16, and torchvision would decode pixel coordinates in it.
        self.model.rpn.head.register_forward_hook(_float32_outputs)
        self.model.roi_heads.box_predictor.register_forward_hook(_float32_outputs)
        self._fix_pooling_scales()

    def _fix_pooling_scales(self) -> None:
        """Let the pooler infer its scales from an unpadded input.

        It infers them once, from the image sizes of the first call: with images that fill only half of the padded
        input it would take wrong ones and keep them.
        """
        pool = self.model.roi_heads.box_roi_pool
        pool.scales = pool.map_levels = None
        maps = dry_run(self.model.backbone)
        boxes = next(iter(maps.values())).new_tensor([[0.0, 0.0, DRY_RUN_SIZE, DRY_RUN_SIZE]])
        pool(maps, [boxes], [(DRY_RUN_SIZE, DRY_RUN_SIZE)])

    def _losses(
        self, images: ImageList, maps: dict[str, Tensor], targets: list[TorchvisionTarget]
    ) -> dict[str, Tensor]:
        with self._branch(training=True):
            proposals, losses = self.model.rpn(images, maps, targets)
            _, box_losses = self.model.roi_heads(maps, proposals, images.image_sizes, targets)
        return {**losses, **box_losses}

    def _found(self, images: ImageList, maps: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        with self._branch(training=False):
            proposals, _ = self.model.rpn(images, maps)
            found, _ = self.model.roi_heads(maps, proposals, images.image_sizes)
        results: list[dict[str, Tensor]] = found
        return results

    @contextmanager
    def _branch(self, training: bool) -> Iterator[None]:
        """Choose between losses and detections, which torchvision reads off these two flags; layers keep theirs."""
        parts = (self.model.rpn, self.model.roi_heads)
        before = [part.training for part in parts]
        for part in parts:
            part.training = training
        try:
            yield
        finally:
            for part, flag in zip(parts, before, strict=True):
                part.training = flag


def wrap_torchvision(
    model: nn.Module, class_names: Sequence[str], label_ids: Sequence[int] | None = None
) -> TorchvisionDetector:
    """Put a torchvision detector behind the contract.

    Args:
        model: an ``FCOS``, ``RetinaNet``, `GFL` or ``FasterRCNN`` whose backbone gives a pyramid.
        class_names: names of the classes, in the order of the contract's labels.
        label_ids: the model's own label of each class; 0.. by default, and 1.. for Faster R-CNN, whose 0 is background.

    Raises:
        DfmsdError: if the model is of another kind, or names and labels do not fit it.
    """
    ids = range(len(class_names)) if label_ids is None else label_ids
    if type(model) in (FCOS, RetinaNet, GFL):
        return OneStageDetector(model, class_names, ids)
    if type(model) is FasterRCNN:
        return TwoStageDetector(model, class_names, [i + 1 for i in ids] if label_ids is None else ids)
    raise DfmsdError(
        f"{type(model).__name__} is not supported: expected torchvision's FCOS, RetinaNet or FasterRCNN, or dfmsd's GFL"
    )


def read_levels(backbone: nn.Module) -> tuple[LevelSpec, ...]:
    """Read a pyramid's levels off a dry run.

    Levels are named by stride: ``p3`` has stride ``2 ** 3``; a second level of the same stride is ``p5_2``.
    """
    levels: list[LevelSpec] = []
    seen: Counter[int] = Counter()
    for value in dry_run(backbone).values():
        stride = DRY_RUN_SIZE // value.shape[-1]
        seen[stride] += 1
        suffix = f"_{seen[stride]}" if seen[stride] > 1 else ""
        levels.append(LevelSpec(f"p{round(math.log2(stride))}{suffix}", value.shape[1], stride))
    return tuple(levels)


class _Float32Anchors(AnchorGenerator):  # type: ignore[misc]  # torchvision is untyped
    """Anchors in float32 whatever the feature maps' type: bfloat16 is off by pixels beyond coordinate 256."""

    def __init__(self, generator: AnchorGenerator) -> None:
        super().__init__(generator.sizes, generator.aspect_ratios)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        # Only type, device and shape are read: an expanded scalar has them and costs nothing.
        maps = [value.new_empty((), dtype=torch.float32).expand(value.shape) for value in feature_maps]
        anchors: list[Tensor] = super().forward(image_list, maps)
        return anchors


def _float32_outputs(_module: nn.Module, _args: Any, output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float()
    return type(output)(_float32_outputs(_module, _args, part) for part in output)


def _whole(images: Tensor) -> ImageList:
    height, width = images.shape[-2:]
    return ImageList(images, [(height, width)] * len(images))


def _check_labels(class_names: Sequence[str], label_ids: Sequence[int], num_outputs: int) -> None:
    if not class_names or len(class_names) != len(set(label_ids)):
        raise DfmsdError(f"expected one label id for each class, got {list(label_ids)} for {list(class_names)}")
    if min(label_ids) < 0 or max(label_ids) >= num_outputs:
        raise DfmsdError(f"label ids must lie in 0..{num_outputs - 1}, got {min(label_ids)}..{max(label_ids)}")
