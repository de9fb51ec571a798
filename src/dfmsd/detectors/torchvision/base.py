"""Base class of the adapters of torchvision's detectors.

torchvision's ``GeneralizedRCNNTransform`` is skipped, since batches arrive resized and padded. All other parts of a
model are torchvision's, called one by one, so that one forward pass returns pyramid and losses.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from dfmsd.detectors.base import REST, ClassRows, Detector
from dfmsd.detectors.classnames import read_names
from dfmsd.detectors.levels import read_levels
from dfmsd.detectors.sizes import SizeRange, with_sizes
from dfmsd.errors import DfmsdError
from dfmsd.types import Detections, FeaturePyramid, LevelSpec, Target

TorchvisionTarget = dict[str, Tensor]


class TorchvisionDetector(Detector):
    """A torchvision detector.

    Losses keep torchvision's names. Thresholds of :meth:`detect` are those of the wrapped model
    (``score_thresh``, ``nms_thresh``, ``detections_per_img``).

    Args:
        model: The torchvision model, kept as ``model``; its ``transform`` states mean and std of its pixels.
        class_names: Names of the classes, in the order of the labels.
        label_ids: The model's label of each class.
        num_outputs: Number of the model's labels, including background and unused ones.
    """

    class_layers: ClassVar[str]
    """Pattern of the keys of tensors with rows of classes."""
    background: ClassVar[bool] = False
    """Whether label 0 is the background."""
    label_ids: Tensor
    class_of: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, class_names: Sequence[str], label_ids: Sequence[int], num_outputs: int) -> None:
        super().__init__()
        self.class_names = read_names(class_names, "class_names")
        _check_labels(class_names, label_ids, num_outputs)
        self.model = model
        class_of = torch.full((num_outputs,), -1)
        class_of[list(label_ids)] = torch.arange(len(label_ids))
        # not persistent: checkpoints hold torchvision's state dict, and a model's description the rest
        self.register_buffer("label_ids", torch.tensor(list(label_ids)), persistent=False)
        self.register_buffer("class_of", class_of, persistent=False)
        for name, values in (("mean", model.transform.image_mean), ("std", model.transform.image_std)):
            self.register_buffer(name, torch.tensor(list(values), dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.levels = self._read_levels()
        self.levels = with_sizes(self.levels, self._read_sizes())

    def features(self, images: Tensor) -> FeaturePyramid:
        """Run backbone and neck: level name -> ``N x C x H/stride x W/stride``."""
        return self._pyramid(self._maps(images))

    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[FeaturePyramid, dict[str, Tensor]]:
        """Return the pyramid and torchvision's losses of one forward pass, in train and in eval mode.

        Raises:
            DfmsdError: A box has no area; boxes on a GPU are not checked.
        """
        maps = self._maps(images)
        losses = self._losses(whole(images), maps, self._to_library_targets(targets))
        return self._pyramid(maps), losses

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Detect objects, best first; boxes are clipped to each image's unpadded ``(height, width)``."""
        image_list = ImageList(images, [(int(height), int(width)) for height, width in sizes])
        return [self._to_detections(result) for result in self._detect(image_list, self._maps(images))]

    def description(self) -> dict[str, Any]:
        """Return the mean and standard deviation of the pixels."""
        transform = self.model.transform
        mean, std = ([float(value) for value in values] for values in (transform.image_mean, transform.image_std))
        return {"image_mean": mean, "image_std": std}

    def class_rows(self) -> dict[str, ClassRows]:
        """Return the rows of each class in the layers that predict them."""
        labels = dict(zip(self.class_names, self.label_ids.tolist(), strict=True))
        if self.background:
            labels[REST] = 0
        state = self.model.state_dict()
        return {
            key: self._rows(key, len(value), labels) for key, value in state.items() if re.match(self.class_layers, key)
        }

    def _rows(self, key: str, length: int, labels: dict[str, int]) -> ClassRows:
        sides = 4 if "bbox_pred" in key else 1  # a region's box has four values for each class
        of_row = torch.arange(length) // sides % len(self.class_of)  # of each anchor, one after the other
        return {name: (of_row == label).nonzero().flatten().tolist() for name, label in labels.items()}

    def backbone_layers(self) -> Sequence[nn.Module]:
        """Return the model's backbone without its feature pyramid or, of an SSD, its extra levels."""
        backbone = self.model.backbone
        part = getattr(backbone, "body", None) or getattr(backbone, "features", None)
        return [part if isinstance(part, nn.Module) else backbone]

    def compilable(self) -> Sequence[nn.Module]:
        """Return backbone and neck, and the head on every level; not assignment, proposals and what follows them."""
        return [self.model.backbone, self._level_head]

    @property
    def _level_head(self) -> nn.Module:
        """The layers that run on whole levels of the pyramid."""
        head: nn.Module = self.model.head
        return head

    def _read_levels(self) -> tuple[LevelSpec, ...]:
        return read_levels(self.model.backbone)

    @abstractmethod
    def _read_sizes(self) -> list[SizeRange] | None:
        """Read the object sizes of each level off the model; None if it has no rule by size."""

    @abstractmethod
    def _losses(
        self, images: ImageList, maps: dict[str, Tensor], targets: list[TorchvisionTarget]
    ) -> dict[str, Tensor]: ...

    @abstractmethod
    def _detect(self, images: ImageList, maps: dict[str, Tensor]) -> list[dict[str, Tensor]]: ...

    def _maps(self, images: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = self.model.backbone((images - self.mean) / self.std)
        return maps

    def _pyramid(self, maps: dict[str, Tensor]) -> FeaturePyramid:
        return {level.name: value for level, value in zip(self.levels, maps.values(), strict=True)}

    def _to_library_targets(self, targets: Sequence[Target]) -> list[TorchvisionTarget]:
        boxes = torch.cat([target["boxes"] for target in targets])
        # checking boxes on a GPU would synchronize every step; those of a data set were checked when it was opened
        if boxes.device.type == "cpu" and bool((boxes[:, 2:] <= boxes[:, :2]).any()):
            raise DfmsdError("a target box has no area, expected x1 < x2 and y1 < y2: remove such boxes from the data")
        library = [{"boxes": target["boxes"], "labels": self.label_ids[target["labels"]]} for target in targets]
        if self.soft_targets and any("scores" in target for target in targets):
            for one, target in zip(library, targets, strict=True):
                one["scores"] = target.get("scores", one["boxes"].new_ones(len(one["boxes"])))
        return library

    def _to_detections(self, result: dict[str, Tensor]) -> Detections:
        labels = self.class_of[result["labels"]]
        keep = labels >= 0
        return {"boxes": result["boxes"][keep], "scores": result["scores"][keep], "labels": labels[keep]}


class Float32Anchors(AnchorGenerator):  # type: ignore[misc]  # torchvision is untyped
    """Anchors in float32 for feature maps of any dtype: bfloat16 is off by pixels beyond coordinate 256."""

    def __init__(self, generator: AnchorGenerator) -> None:
        super().__init__(generator.sizes, generator.aspect_ratios)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return the anchors of each image."""
        anchors: list[Tensor] = super().forward(image_list, in_float32(feature_maps))
        return anchors


def in_float32(maps: Sequence[Tensor]) -> list[Tensor]:
    """Return float32 stand-ins for feature maps, with the device and shape that an anchor generator reads."""
    # expanded scalars take no memory
    return [value.new_empty((), dtype=torch.float32).expand(value.shape) for value in maps]


def whole(images: Tensor) -> ImageList:
    """Return an image list whose images fill the padded input."""
    height, width = images.shape[-2:]
    return ImageList(images, [(height, width)] * len(images))


def _check_labels(class_names: Sequence[str], label_ids: Sequence[int], num_outputs: int) -> None:
    if not class_names or len(class_names) != len(set(label_ids)):
        raise DfmsdError(f"expected one label id per class, got {list(label_ids)} for {list(class_names)}")
    if min(label_ids) < 0 or max(label_ids) >= num_outputs:
        raise DfmsdError(f"label ids must lie in 0..{num_outputs - 1}, got {min(label_ids)}..{max(label_ids)}")
