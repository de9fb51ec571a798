"""Adapter of the DETR families of Hugging Face transformers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, clip_boxes_to_image

from dfmsd.detectors.base import (
    DETECTIONS_PER_IMAGE,
    REST,
    SCORE_THRESHOLD,
    UNUSED_CLASSES,
    ClassRows,
    Detector,
)
from dfmsd.detectors.hooks import FeatureHooks
from dfmsd.detectors.levels import read_levels
from dfmsd.errors import DfmsdError
from dfmsd.types import Detections, FeaturePyramid, Target

CLASS_LAYERS = ("class_embed", "enc_score_head")
"""Parts of the names of a student's layers whose width is the number of classes."""
Reader = Callable[[Any, Mapping[str, Any], tuple[int, int]], Sequence[Tensor]]
"""An encoder's output, its keyword arguments, and the input's height and width -> maps, finest first."""


def read_maps(output: Any, kwargs: Mapping[str, Any], size: tuple[int, int]) -> Sequence[Tensor]:
    """Return the maps of a hybrid encoder (RT-DETR's)."""
    maps: Sequence[Tensor] = output.last_hidden_state
    return maps


def read_levels_memory(output: Any, kwargs: Mapping[str, Any], size: tuple[int, int]) -> Sequence[Tensor]:
    """Split the memory of all levels (Deformable DETR's), ``N x L x C``, by the shapes passed to the encoder."""
    shapes = kwargs["spatial_shapes_list"]
    levels = output.last_hidden_state.split([height * width for height, width in shapes], dim=1)
    return [level.mT.unflatten(2, shape) for level, shape in zip(levels, shapes, strict=True)]


def read_memory(output: Any, kwargs: Mapping[str, Any], size: tuple[int, int]) -> Sequence[Tensor]:
    """Reshape the memory of one level (DETR's), ``N x L x C``, to its map; its stride follows from ``L``."""
    memory = output.last_hidden_state
    height, width = size
    stride = math.isqrt(height * width // memory.shape[1])
    return [memory.mT.unflatten(2, (height // stride, width // stride))]


class Family(NamedTuple):
    """What differs between the library's models."""

    read: Reader
    processor: str
    """Name of the library's class that prepares the images and decodes the predictions."""
    trainable: bool = False
    """Whether it can be a student: its forward pass returns its loss, as weighted terms."""


FAMILIES: dict[str, Family] = {
    "rt_detr": Family(read_maps, "RTDetrImageProcessor", trainable=True),
    "rt_detr_v2": Family(read_maps, "RTDetrImageProcessor", trainable=True),
    "d_fine": Family(read_maps, "RTDetrImageProcessor", trainable=True),
    "deformable_detr": Family(read_levels_memory, "DeformableDetrImageProcessor"),
    "detr": Family(read_memory, "DetrImageProcessor"),
    "table-transformer": Family(read_memory, "DetrImageProcessor"),
    "conditional_detr": Family(read_memory, "ConditionalDetrImageProcessor"),
    "dab-detr": Family(read_memory, "ConditionalDetrImageProcessor"),
}
"""``model_type`` of a ``config.json`` -> its family."""


class TransformersDetector(Detector):
    """A detector of the library; its losses keep the library's names, weights and matching.

    Images are normalized as its image processor would, but not resized: teacher and student share one batch. The
    model gets no pixel mask, so the padding belongs to the image, and predicted boxes in 0..1 refer to the padded
    input.

    Args:
        model: An ``...ForObjectDetection`` of one of `FAMILIES`, kept as ``model``; its ``id2label`` names the classes.
        processor: The image processor that its weights were trained with.
    """

    class_of: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        self.family = FAMILIES[model.config.model_type]
        names: dict[int, str] = dict(sorted(model.config.id2label.items()))
        used = [label for label, name in names.items() if name not in UNUSED_CLASSES]
        self.class_names = tuple(names[label] for label in used)
        class_of = torch.full((max(names) + 1,), -1)
        class_of[used] = torch.arange(len(used))
        mean, std = normalization(processor_settings(processor))
        # Not persistent: checkpoints hold the library's own state dict, and a model's description the rest.
        self.register_buffer("class_of", class_of, persistent=False)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.levels = read_levels(self, self.maps)

    def features(self, images: Tensor) -> FeaturePyramid:
        """Run the model up to and including its encoder: level name -> ``N x C x H/stride x W/stride``.

        Raises:
            DfmsdError: The encoder cannot take images of this size.
        """
        return self._pyramid(self.maps(images))

    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[FeaturePyramid, dict[str, Tensor]]:
        """Return the pyramid and the library's losses of one forward pass, in train and in eval mode.

        In train mode, denoising queries add their losses if the batch has a box.

        Raises:
            DfmsdError: The family can only teach, or the encoder cannot take images of this size.
        """
        if not self.family.trainable:
            raise refuse_student(self.model.config.model_type)
        output, maps = self._run(images, labels=to_library_targets(targets, (images.shape[-2], images.shape[-1])))
        return self._pyramid(maps), dict(output.loss_dict)

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Detect objects, best first; boxes are clipped to each image's unpadded ``(height, width)``."""
        self.input_sizes.check(images)
        output = self.model(pixel_values=self._normalize(images))
        predicted = SimpleNamespace(logits=output.logits.float(), pred_boxes=output.pred_boxes.float())
        padded = [(images.shape[-2], images.shape[-1])] * len(images)
        results = self.processor.post_process_object_detection(
            predicted, threshold=SCORE_THRESHOLD, target_sizes=padded
        )
        return [self._to_detections(result, size) for result, size in zip(results, sizes, strict=True)]

    def description(self) -> dict[str, Any]:
        """Return the library's config and the processor's normalization, to rebuild the model from."""
        settings = processor_settings(self.processor)
        return {"transformers": {"config": self.model.config.to_dict(), "pixels": settings}}

    def backbone_layers(self) -> Sequence[nn.Module]:
        """Return the library's backbone, without the layers that project its maps."""
        return [self.model.model.backbone]

    def class_rows(self) -> dict[str, ClassRows]:
        """Return the rows of each class in the layers that predict classes, and in the embedding of noisy ones."""
        rows = {name: [int((self.class_of == index).nonzero())] for index, name in enumerate(self.class_names)}
        state = self.model.state_dict()
        layers = {key: value for key, value in state.items() if any(layer in key for layer in CLASS_LAYERS)}
        labels = self.model.config.num_labels
        return {key: {**rows, REST: list(range(labels, len(value)))} for key, value in layers.items()}

    def maps(self, images: Tensor) -> Sequence[Tensor]:
        """Return the encoder's maps, finest first, without running the rest of the model."""
        return self._run(images, stop=True)[1]

    def _run(self, images: Tensor, *, stop: bool = False, **kwargs: Any) -> tuple[Any, Sequence[Tensor]]:
        """Run the model; return its output, None if stopped after the encoder, and the encoder's maps.

        Every family has an ``encoder``, but each prepares the backbone's maps for it in its own way.
        """
        self.input_sizes.check(images)
        output = None
        with FeatureHooks({"encoder": self.model.model.encoder}, stop=stop) as calls:
            output = self.model(pixel_values=self._normalize(images), **kwargs)
        (call,) = calls["encoder"]
        return output, self.family.read(call.output, call.kwargs, (images.shape[-2], images.shape[-1]))

    def _normalize(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    def _pyramid(self, maps: Sequence[Tensor]) -> FeaturePyramid:
        return {level.name: value for level, value in zip(self.levels, maps, strict=True)}

    def _to_detections(self, result: Mapping[str, Tensor], size: tuple[int, int]) -> Detections:
        labels = self.class_of[result["labels"]]
        order = result["scores"].argsort(descending=True, stable=True)
        order = order[labels[order] >= 0][:DETECTIONS_PER_IMAGE]
        boxes = clip_boxes_to_image(result["boxes"][order], (int(size[0]), int(size[1])))
        return {"boxes": boxes, "scores": result["scores"][order], "labels": labels[order]}


def to_library_targets(targets: Sequence[Target], size: tuple[int, int]) -> list[dict[str, Tensor]]:
    """Convert targets to the library's ``class_labels`` and ``boxes``, cxcywh in 0..1 of the padded input.

    Args:
        targets: Targets with boxes in pixels.
        size: Height and width of the padded input.
    """
    height, width = size
    boxes = torch.cat([target["boxes"] for target in targets])
    scaled = box_convert(boxes, "xyxy", "cxcywh") / boxes.new_tensor([width, height, width, height])
    per_image = scaled.split([len(target["boxes"]) for target in targets])
    return [{"class_labels": t["labels"], "boxes": boxes} for t, boxes in zip(targets, per_image, strict=True)]


def processor_settings(processor: Any) -> dict[str, Any]:
    """Return how a processor scales and normalizes pixels, as JSON types."""
    return {
        "do_rescale": bool(processor.do_rescale),
        "rescale_factor": float(processor.rescale_factor),
        "do_normalize": bool(processor.do_normalize),
        "image_mean": [float(value) for value in processor.image_mean],
        "image_std": [float(value) for value in processor.image_std],
    }


def normalization(settings: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, ``3 x 1 x 1``, of pixels in [0, 1]; a processor's refer to its own scale."""
    scale = 255 * settings["rescale_factor"] if settings["do_rescale"] else 255.0
    normalizes = settings["do_normalize"]
    mean, std = (settings["image_mean"], settings["image_std"]) if normalizes else ([0.0] * 3, [1.0] * 3)
    return torch.tensor(mean).view(3, 1, 1) / scale, torch.tensor(std).view(3, 1, 1) / scale


def refuse_student(model_type: str) -> DfmsdError:
    """Return the error for a family that cannot be a student."""
    students = ", ".join(name for name, family in FAMILIES.items() if family.trainable)
    return DfmsdError(
        f"a transformers model of type {model_type} can only teach; as a student, choose one of {students}"
    )
