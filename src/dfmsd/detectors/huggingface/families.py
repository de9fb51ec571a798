"""What differs between the detectors of Hugging Face transformers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from dfmsd.detectors.hooks import Call
from dfmsd.detectors.inputsizes import InputSizes
from dfmsd.types import LevelSpec, Queries

Reader = Callable[[Call, Any, tuple[int, int]], Sequence[Tensor]]
"""A call of the module that makes the maps, the model's config, and the input's height and width -> maps, finest
first."""


def read_maps(call: Call, config: Any, size: tuple[int, int]) -> Sequence[Tensor]:
    """Return the maps of a hybrid encoder (RT-DETR's)."""
    maps: Sequence[Tensor] = call.output.last_hidden_state
    return maps


def read_feature_maps(call: Call, config: Any, size: tuple[int, int]) -> Sequence[Tensor]:
    """Return the maps of a hybrid or lite encoder (DEIMv2's)."""
    maps: Sequence[Tensor] = call.output.feature_maps
    return maps


def read_levels_memory(call: Call, config: Any, size: tuple[int, int]) -> Sequence[Tensor]:
    """Split the memory of all levels (Deformable DETR's), ``N x L x C``, by the shapes passed to the encoder."""
    shapes = call.kwargs["spatial_shapes_list"]
    levels = call.output.last_hidden_state.split([height * width for height, width in shapes], dim=1)
    return [level.mT.unflatten(2, shape) for level, shape in zip(levels, shapes, strict=True)]


def read_memory(call: Call, config: Any, size: tuple[int, int]) -> Sequence[Tensor]:
    """Reshape the memory of one level (DETR's), ``N x L x C``, to its map; its stride follows from ``L``."""
    memory = call.output.last_hidden_state
    height, width = size
    stride = math.isqrt(height * width // memory.shape[1])
    return [memory.mT.unflatten(2, (height // stride, width // stride))]


def read_masked_maps(call: Call, config: Any, size: tuple[int, int]) -> Sequence[Tensor]:
    """Return the maps of a projector that pairs each with its mask (LW-DETR's)."""
    return [value for value, _ in call.output]


def read_masked_map(call: Call, config: Any, size: tuple[int, int]) -> Sequence[Tensor]:
    """Return the map of a projector that pairs it with its mask (RF-DETR's)."""
    value, _ = call.output
    return [value]


def read_patches(call: Call, config: Any, size: tuple[int, int]) -> Sequence[Tensor]:
    """Reshape the patches among the tokens (YOLOS's): first the class token, last the detection tokens."""
    height, width = (side // config.patch_size for side in size)
    patches = call.output.last_hidden_state[:, 1 : -config.num_detection_tokens]
    return [patches.mT.unflatten(2, (height, width))]


def any_size(config: Any) -> InputSizes:
    """Return the sizes of a model with strides up to 32."""
    return InputSizes()


def windows_per_side(config: Any) -> InputSizes:
    """Return the sizes of LW-DETR, whose backbone attends within windows of equal numbers of patches."""
    backbone = config.backbone_config
    return InputSizes(step=backbone.patch_size * backbone.num_windows_side)


def square_windows(config: Any) -> InputSizes:
    """Return the sizes of RF-DETR: as LW-DETR's, but of other images than squares it mixes up rows and columns."""
    backbone = config.backbone_config
    return InputSizes(step=backbone.patch_size * backbone.num_windows, square=backbone.num_windows > 1)


EPS = 1e-6
"""Distance of a softmax's scores from 0 and 1, where the logit of a sigmoid would be infinite."""
BOX_LOSS: dict[str, str | float] = {"loss_bbox": "bbox_loss_coefficient", "loss_giou": "giou_loss_coefficient"}
"""Beginning of a term's name -> its weight, or the weight's key in the config, for models that return their terms
unweighted."""


class Family(NamedTuple):
    """What differs between the library's models."""

    read: Reader
    processor: str
    """Name of the library's class that prepares the images and decodes the predictions."""
    trainable: bool = False
    """Whether it can be a student."""
    source: str = "model.encoder"
    """Path of the module whose output holds the maps."""
    backbone: tuple[str, ...] = ("model.backbone",)
    """Paths of the backbone, of which a model has one; without layers that project its maps."""
    sizes: Callable[[Any], InputSizes] = any_size
    """The model's config -> sizes of images that it can take."""
    selects: bool = False
    """Whether the queries are the best cells of the maps, which must not be fewer."""
    weights: Mapping[str, str | float] | None = None
    """As `BOX_LOSS`; None if the library returns weighted terms."""
    frozen_norms: bool = False
    """Whether the backbone's batch normalization never learns, so that a student needs trained weights."""
    options: Mapping[str, Any] = {}
    """Options of a student's config, whatever its file says."""

    groups: bool = False
    """Whether further groups of queries follow the first one in training; otherwise denoising queries precede them."""
    softmax: bool = False
    """Whether the scores are a softmax over the classes and, last, no object; otherwise each class has a sigmoid."""

    def own_queries(self, queries: Queries, config: Any) -> Queries:
        """Return the predictions of the queries that detect, with logits whose sigmoid is the score."""
        own = slice(-config.num_queries, None) if self.selects else slice(None)
        logits, boxes = (value[:, : config.num_queries] if self.groups else value[:, own] for value in queries)
        return Queries(logits.softmax(-1)[..., :-1].logit(eps=EPS) if self.softmax else logits, boxes)

    def weighted(self, terms: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
        """Return the terms whose sum is the library's loss."""
        if self.weights is None:
            return dict(terms)
        found = {term: weight for term in terms for start, weight in self.weights.items() if term.startswith(start)}
        return {
            term: terms[term] * (getattr(config, weight) if isinstance(weight, str) else weight)
            for term, weight in found.items()
        }


def needed_area(family: Family, config: Any, levels: Sequence[LevelSpec]) -> int:
    """Return the smallest area of an image, in pixels, whose cells are enough for the queries."""
    return math.ceil(config.num_queries / sum(level.stride**-2 for level in levels)) if family.selects else 1


RT_DETR = Family(read_maps, "RTDetrImageProcessor", trainable=True, selects=True)
LW_DETR = Family(
    read_masked_maps,
    "DeformableDetrImageProcessor",
    trainable=True,
    source="model.backbone",
    backbone=("model.backbone.backbone",),
    sizes=windows_per_side,
    selects=True,
    groups=True,
    weights={"loss_ce": "class_loss_coefficient", **BOX_LOSS},
)
FAMILIES: dict[str, Family] = {
    "rt_detr": RT_DETR,
    "rt_detr_v2": RT_DETR,
    "d_fine": RT_DETR,
    "deimv2": RT_DETR._replace(
        read=read_feature_maps, backbone=("model.conv_encoder.model", "model.conv_encoder.backbone")
    ),
    "lw_detr": LW_DETR,
    "rf_detr": LW_DETR._replace(read=read_masked_map, processor="RfDetrImageProcessor", sizes=square_windows),
    "deformable_detr": Family(
        read_levels_memory,
        "DeformableDetrImageProcessor",
        trainable=True,
        weights={"loss_ce": 1.0, **BOX_LOSS},
        frozen_norms=True,
        options={"auxiliary_loss": True},  # false by default, which leaves all but the last layer's head untrained
    ),
    "detr": Family(read_memory, "DetrImageProcessor", softmax=True),
    "table-transformer": Family(read_memory, "DetrImageProcessor", softmax=True),
    "conditional_detr": Family(read_memory, "ConditionalDetrImageProcessor"),
    "dab-detr": Family(read_memory, "ConditionalDetrImageProcessor"),
    "yolos": Family(read_patches, "YolosImageProcessor", source="vit", backbone=("vit",), softmax=True),
}
"""``model_type`` of a ``config.json`` -> its family."""
