"""The detector contract around the detectors of MMDetection that predict on a grid of priors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from dfmsd.detectors.base import Detector
from dfmsd.detectors.hooks import Watch
from dfmsd.detectors.mmdet.settings import Settings, write
from dfmsd.detectors.normalize import Pixels
from dfmsd.detectors.torchvision.base import Maps, read_levels
from dfmsd.errors import DfmsdError
from dfmsd.types import Detections, FeaturePyramid, LevelSpec, Target


class MMDetector(Detector):
    """A detector of the library behind the contract; losses keep its names, weights and assignment.

    Pixels are normalised, and their channels ordered, as the config's ``data_preprocessor`` says; its padding and its
    augmentation of batches are left out, since batches arrive padded. Thresholds of :meth:`detect` are those of the
    config's ``test_cfg``. Under autocast heads compute in the half type and everything behind them in float32.

    Args:
        model: one- or two-stage, with one prior generator for all levels, kept as ``model``.
        settings: that built it.
        class_names: label ``i`` is ``class_names[i]``.

    Raises:
        DfmsdError: the settings do not tell the pixels, or the model not the strides of its levels.
    """

    def __init__(self, model: Any, settings: Settings, class_names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.class_names = tuple(class_names)
        self.pixels = read_pixels(settings)
        for module in (self._last, *self._heads):
            module.register_forward_hook(_float32_outputs)
        self.levels = self._read_levels()

    def features(self, images: Tensor) -> FeaturePyramid:
        """Run backbone and neck: level name -> ``N x C x H/stride x W/stride``."""
        return self._pyramid(self._maps(images))

    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[FeaturePyramid, dict[str, Tensor]]:
        """Give pyramid and the library's losses of one forward pass, in train and in eval mode."""
        samples = [_sample(images, (images.shape[-2], images.shape[-1]), target) for target in targets]
        with self._branch(training=True), Watch({"maps": self._last}) as calls:
            losses = self.model.loss(self.pixels(images), samples)
        (call,) = calls["maps"]
        return self._pyramid(call.output), scalars(losses)

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Detect objects, best first; boxes are clipped to each image's unpadded ``(height, width)``."""
        samples = [_sample(images, (int(height), int(width))) for height, width in sizes]
        with self._branch(training=False):
            found = self.model.predict(self.pixels(images), samples, rescale=False)
        return [_own_detections(one.pred_instances, one.img_shape) for one in found]

    def description(self) -> dict[str, Any]:
        """Give the library's settings, from which the model is built again, as a Python literal."""
        return {"mmdet": write(self.settings)}

    @property
    def _last(self) -> nn.Module:
        """What gives the pyramid."""
        last: nn.Module = self.model.neck if self.model.with_neck else self.model.backbone
        return last

    @property
    def _heads(self) -> list[nn.Module]:
        """What predicts boxes, densely or of regions."""
        made = ("loss_by_feat", "loss_and_target")
        return [module for module in self.model.modules() if any(hasattr(module, name) for name in made)]

    @contextmanager
    def _branch(self, training: bool) -> Iterator[None]:
        """Choose between losses and detections, which some heads read off this flag too; layers keep theirs."""
        before = [(head, head.training) for head in self._heads]
        for head, _ in before:
            head.training = training
        try:
            yield
        finally:
            for head, flag in before:
                head.training = flag

    def _maps(self, images: Tensor) -> Sequence[Tensor]:
        maps: Sequence[Tensor] = self.model.extract_feat(self.pixels(images))
        return maps

    def _pyramid(self, maps: Sequence[Tensor]) -> FeaturePyramid:
        return {level.name: value for level, value in zip(self.levels, maps, strict=True)}

    def _read_levels(self) -> tuple[LevelSpec, ...]:
        strides = read_strides(self.model)

        def maps(images: Tensor) -> Sequence[Tensor]:
            found = self._maps(images)
            if len(found) != len(strides):
                raise DfmsdError(
                    f"{type(self.model).__name__}: its prior generator has strides {strides}, but its neck gives "
                    f"{len(found)} maps; a detector whose head reads every map is needed"
                )
            return found

        return read_levels(Maps(self, maps), strides=strides)


def read_strides(model: Any) -> list[int]:
    """Read the strides of the levels off the priors, of a two-stage detector those of its proposals.

    Shapes do not tell them: a level of 3 cells in an image of 320 pixels has stride 128.

    Raises:
        DfmsdError: the model has no such priors.
    """
    head = model.rpn_head if hasattr(model, "rpn_head") else getattr(model, "bbox_head", None)
    priors = getattr(head, "prior_generator", None)
    if priors is None:
        raise DfmsdError(
            f"{type(model).__name__} of mmdet has no prior_generator, which tells the strides of its levels: take a "
            "detector with a dense head or region proposals, such as RetinaNet, FCOS, GFL, RepPoints, ATSS, Faster "
            "R-CNN or Cascade R-CNN; of transformers' detectors those of hf:"
        )
    return [int(stride) for stride, _ in priors.strides]


def read_pixels(settings: Settings) -> Pixels:
    """Read what a config does to pixels of 0..255 whose channels, as the library loads images, are blue, green, red.

    Raises:
        DfmsdError: it does not tell.
    """
    told = settings.get("data_preprocessor")
    if not told:
        raise DfmsdError(
            "the config has no model.data_preprocessor, which tells mean, std and order of the channels: give a config "
            "of mmdet 3, whose base files have one"
        )
    mean, std = (list(told.get(key) or [default]) for key, default in (("mean", 0.0), ("std", 1.0)))
    mean, std = ([value / 255 for value in (values * 3 if len(values) == 1 else values)] for values in (mean, std))
    return Pixels(mean, std, bgr=not told.get("bgr_to_rgb", False))


def scalars(losses: Mapping[str, Any]) -> dict[str, Tensor]:
    """Take each loss as the library adds them up: mean of a tensor, sum over the levels of a list.

    What else is among them, accuracies, is no loss; the library tells both by their names.
    """
    parts = {name: value if isinstance(value, list | tuple) else [value] for name, value in losses.items()}
    return {name: torch.stack([one.mean() for one in part]).sum() for name, part in parts.items() if "loss" in name}


def _sample(images: Tensor, size: tuple[int, int], target: Target | None = None) -> Any:
    """Describe one image as the library does; its shape has no padding, its scale is that of the input."""
    sample = import_module("mmdet.structures").DetDataSample()
    padded = (images.shape[-2], images.shape[-1])
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


def _own_detections(found: Any, size: tuple[int, int]) -> Detections:
    order = found.scores.argsort(descending=True, stable=True)
    boxes = clip_boxes_to_image(found.bboxes[order], size)
    return {"boxes": boxes, "scores": found.scores[order], "labels": found.labels[order]}


def _float32_outputs(_module: nn.Module, _args: Any, output: Any) -> Any:
    """Widen half types: under autocast the library would pool and decode pixel coordinates in bfloat16."""
    if isinstance(output, Tensor):
        return output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
    if isinstance(output, list | tuple):
        return type(output)(_float32_outputs(_module, _args, part) for part in output)
    return output
