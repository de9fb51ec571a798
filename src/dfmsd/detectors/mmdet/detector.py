"""Adapter of MMDetection's detectors that predict on a grid of priors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from dfmsd.detectors.base import Detector
from dfmsd.detectors.hooks import FeatureHooks
from dfmsd.detectors.levels import read_levels
from dfmsd.detectors.mmdet.settings import Settings, write
from dfmsd.detectors.normalize import Normalize
from dfmsd.detectors.sizes import SizeRange, anchor_ranges, two_stage_ranges, with_sizes
from dfmsd.errors import DfmsdError
from dfmsd.types import Detections, FeaturePyramid, LevelSpec, Target
from dfmsd.utils.shapes import frame_of

OPEN_END = 1e8
"""The library's ``INF``, the upper end of the coarsest level's range."""


class MMDetector(Detector):
    """A detector of the library; its losses keep the library's names, weights and assignment.

    Images are normalized, and their channels ordered, as by the config's ``data_preprocessor``, but not padded or
    augmented, since batches arrive padded. Thresholds of :meth:`detect` are those of the config's ``test_cfg``. Under
    autocast, heads compute in half precision and everything after them in float32.

    Args:
        model: A one- or two-stage detector with one prior generator for all levels, kept as ``model``.
        settings: The settings that built it.
        class_names: Label ``i`` is ``class_names[i]``.

    Raises:
        DfmsdError: The settings do not state the normalization, or the model does not state the strides of its levels.
    """

    def __init__(self, model: Any, settings: Settings, class_names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.class_names = tuple(class_names)
        self.normalize = read_normalization(settings)
        for module in (self._last_layer, *self._heads):
            module.register_forward_hook(_float32_outputs)
        self.levels = self._read_levels()

    def features(self, images: Tensor) -> FeaturePyramid:
        """Run backbone and neck: level name -> ``N x C x H/stride x W/stride``."""
        return self._pyramid(self._maps(images))

    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[FeaturePyramid, dict[str, Tensor]]:
        """Return the pyramid and the library's losses of one forward pass, in train and in eval mode."""
        samples = [_sample(images, frame_of(images), target) for target in targets]
        with self._head_mode(training=True), FeatureHooks({"maps": self._last_layer}) as calls:
            losses = self.model.loss(self.normalize(images), samples)
        (call,) = calls["maps"]
        return self._pyramid(call.output), scalars(losses)

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Detect objects, best first; boxes are clipped to each image's unpadded ``(height, width)``."""
        samples = [_sample(images, (int(height), int(width))) for height, width in sizes]
        with self._head_mode(training=False):
            results = self.model.predict(self.normalize(images), samples, rescale=False)
        return [_to_detections(result.pred_instances, result.img_shape) for result in results]

    def description(self) -> dict[str, Any]:
        """Return the library's settings, to rebuild the model from, as a Python literal."""
        return {"mmdet": write(self.settings)}

    def backbone_layers(self) -> Sequence[nn.Module]:
        """Return the library's backbone."""
        return [self.model.backbone]

    @property
    def _last_layer(self) -> nn.Module:
        """The module that outputs the pyramid."""
        layer: nn.Module = self.model.neck if self.model.with_neck else self.model.backbone
        return layer

    @property
    def _heads(self) -> list[nn.Module]:
        """The modules that predict boxes, densely or for regions."""
        methods = ("loss_by_feat", "loss_and_target")
        return [module for module in self.model.modules() if any(hasattr(module, name) for name in methods)]

    @contextmanager
    def _head_mode(self, training: bool) -> Iterator[None]:
        """Set the flag by which some heads choose between losses and detections; their layers keep theirs."""
        before = [(head, head.training) for head in self._heads]
        for head, _ in before:
            head.training = training
        try:
            yield
        finally:
            for head, flag in before:
                head.training = flag

    def _maps(self, images: Tensor) -> Sequence[Tensor]:
        maps: Sequence[Tensor] = self.model.extract_feat(self.normalize(images))
        return maps

    def _pyramid(self, maps: Sequence[Tensor]) -> FeaturePyramid:
        return {level.name: value for level, value in zip(self.levels, maps, strict=True)}

    def _read_levels(self) -> tuple[LevelSpec, ...]:
        strides = read_strides(self.model)

        def maps(images: Tensor) -> Sequence[Tensor]:
            values = self._maps(images)
            if len(values) != len(strides):
                raise DfmsdError(
                    f"{type(self.model).__name__}: its prior generator has strides {strides}, but its neck returns "
                    f"{len(values)} maps; choose a detector whose head reads every map"
                )
            return values

        return with_sizes(read_levels(self, maps, strides=strides), read_sizes(self.model))


def read_strides(model: Any) -> list[int]:
    """Return the strides of the priors, in a two-stage detector those of its proposals.

    They do not follow from shapes: a level of 3 cells in an image of 320 pixels has stride 128.

    Raises:
        DfmsdError: The model has no prior generator.
    """
    priors = getattr(_dense_head(model), "prior_generator", None)
    if priors is None:
        raise DfmsdError(
            f"{type(model).__name__} of mmdet has no prior_generator, which states the strides of its levels: choose a "
            "detector with a dense head or region proposals, such as RetinaNet, FCOS, GFL, RepPoints, ATSS, Faster "
            "R-CNN or Cascade R-CNN; transformer detectors are available with hf:"
        )
    return [int(stride) for stride, _ in priors.strides]


def read_sizes(model: Any) -> list[SizeRange] | None:
    """Return the object sizes of each level; None for heads without a rule by size, such as RepPoints'.

    They follow from the anchors, in a two-stage detector also from the level that regions are pooled from, or from the
    ``regress_ranges`` of a head without anchors, which count unchanged, see `OneStageDetector` of torchvision's FCOS.
    """
    head = _dense_head(model)
    anchors = getattr(head.prior_generator, "base_anchors", None)
    if anchors is None:
        ranges = getattr(head, "regress_ranges", None)
        return None if ranges is None else _open_ends([(float(lower), float(upper)) for lower, upper in ranges])
    areas = ((level[:, 2:] - level[:, :2]).prod(dim=1) for level in anchors)
    sides = [area.sqrt().tolist() for area in areas]
    return two_stage_ranges(sides, _first_pooling_bound(model)) if hasattr(model, "rpn_head") else anchor_ranges(sides)


def _dense_head(model: Any) -> Any:
    """Return the head on the grid of priors, in a two-stage detector that of its proposals."""
    return model.rpn_head if hasattr(model, "rpn_head") else getattr(model, "bbox_head", None)


def _first_pooling_bound(model: Any) -> float | None:
    """Return the size at which pooling changes from the finest level to the next; None without such a rule."""
    extractor = getattr(getattr(model, "roi_head", None), "bbox_roi_extractor", None)
    stages = extractor if isinstance(extractor, nn.ModuleList) else [extractor]
    scale: float | None = getattr(stages[0], "finest_scale", None)
    return None if scale is None else 2 * scale


def _open_ends(ranges: list[SizeRange]) -> list[SizeRange]:
    """Replace the library's -1 and 1e8 for open ends."""
    return [(max(lower, 0.0), upper if upper < OPEN_END else math.inf) for lower, upper in ranges]


def read_normalization(settings: Settings) -> Normalize:
    """Read a config's normalization, of pixels in 0..255 and BGR channels, as the library loads images.

    Raises:
        DfmsdError: It does not state one.
    """
    preprocessor = settings.get("data_preprocessor")
    if not preprocessor:
        raise DfmsdError(
            "the config has no model.data_preprocessor, which states mean, std and order of the channels: pass a "
            "config of mmdet 3, whose base files have one"
        )
    mean, std = (list(preprocessor.get(key) or [default]) for key, default in (("mean", 0.0), ("std", 1.0)))
    mean, std = ([value / 255 for value in (values * 3 if len(values) == 1 else values)] for values in (mean, std))
    return Normalize(mean, std, bgr=not preprocessor.get("bgr_to_rgb", False))


def scalars(losses: Mapping[str, Any]) -> dict[str, Tensor]:
    """Reduce each loss as the library does: the mean of a tensor, the sum over the levels of a list.

    Other entries, such as accuracies, are not losses; as in the library, their names distinguish them.
    """
    levels = {name: value if isinstance(value, list | tuple) else [value] for name, value in losses.items()}
    return {
        name: torch.stack([value.mean() for value in values]).sum() for name, values in levels.items() if "loss" in name
    }


def _sample(images: Tensor, size: tuple[int, int], target: Target | None = None) -> Any:
    """Describe one image for the library, with its unpadded shape and without rescaling."""
    sample = import_module("mmdet.structures").DetDataSample()
    padded = frame_of(images)
    sample.set_metainfo(
        {
            "img_shape": size,
            "ori_shape": size,
            "pad_shape": padded,
            "batch_input_shape": padded,
            "scale_factor": (1.0, 1.0),
        }
    )
    if target is not None:
        instances = import_module("mmengine.structures").InstanceData
        sample.gt_instances = instances(bboxes=target["boxes"], labels=target["labels"])
    return sample


def _to_detections(instances: Any, size: tuple[int, int]) -> Detections:
    order = instances.scores.argsort(descending=True, stable=True)
    boxes = clip_boxes_to_image(instances.bboxes[order], size)
    return {"boxes": boxes, "scores": instances.scores[order], "labels": instances.labels[order]}


def _float32_outputs(_module: nn.Module, _args: Any, output: Any) -> Any:
    """Convert half precision to float32: under autocast the library would pool and decode coordinates in bfloat16."""
    if isinstance(output, Tensor):
        return output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
    if isinstance(output, list | tuple):
        return type(output)(_float32_outputs(_module, _args, value) for value in output)
    return output
