"""The detector contract around the DETR families of Hugging Face transformers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_convert, clip_boxes_to_image

from dfmsd.detectors.base import DETECTIONS_PER_IMAGE, SCORE_THRESHOLD, UNUSED_CLASSES, Detector
from dfmsd.detectors.hooks import Watch
from dfmsd.detectors.torchvision.base import Maps, read_levels
from dfmsd.errors import DfmsdError
from dfmsd.types import Detections, FeaturePyramid, Target

SIZE_STEP = 32
"""Sides of an input are multiples of this, as the data module pads them: encoders add up maps of strides 8 to 32."""
Reader = Callable[[Any, Mapping[str, Any], tuple[int, int]], Sequence[Tensor]]
"""What an encoder gave, what it was given by name, and the input's height and width -> maps, finest first."""


def read_maps(output: Any, given: Mapping[str, Any], size: tuple[int, int]) -> Sequence[Tensor]:
    """Read the maps of a hybrid encoder (RT-DETR's), which gives them as they are."""
    maps: Sequence[Tensor] = output.last_hidden_state
    return maps


def read_levels_memory(output: Any, given: Mapping[str, Any], size: tuple[int, int]) -> Sequence[Tensor]:
    """Split the memory of all levels (Deformable DETR's), ``N x L x C``, by the shapes that the encoder was given."""
    shapes = given["spatial_shapes_list"]
    parts = output.last_hidden_state.split([height * width for height, width in shapes], dim=1)
    return [part.mT.unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]


def read_memory(output: Any, given: Mapping[str, Any], size: tuple[int, int]) -> Sequence[Tensor]:
    """Fold the memory of one level (DETR's), ``N x L x C``, into its map; its stride follows from ``L``."""
    memory = output.last_hidden_state
    height, width = size
    stride = math.isqrt(height * width // memory.shape[1])
    return [memory.mT.unflatten(2, (height // stride, width // stride))]


class Family(NamedTuple):
    """What differs between the models of the library."""

    read: Reader
    processor: str
    """Name of the library's class that prepares its pixels and decodes its predictions."""
    learns: bool = False
    """Whether it can be a student: its loss comes with the forward pass, as weighted parts."""


FAMILIES: dict[str, Family] = {
    "rt_detr": Family(read_maps, "RTDetrImageProcessor", learns=True),
    "rt_detr_v2": Family(read_maps, "RTDetrImageProcessor", learns=True),
    "d_fine": Family(read_maps, "RTDetrImageProcessor", learns=True),
    "deformable_detr": Family(read_levels_memory, "DeformableDetrImageProcessor"),
    "detr": Family(read_memory, "DetrImageProcessor"),
    "table-transformer": Family(read_memory, "DetrImageProcessor"),
    "conditional_detr": Family(read_memory, "ConditionalDetrImageProcessor"),
    "dab-detr": Family(read_memory, "ConditionalDetrImageProcessor"),
}
"""``model_type`` of a ``config.json`` -> its family."""


class TransformersDetector(Detector):
    """A detector of the library behind the contract; losses keep its names, weights and matching.

    Pixels are what its image processor would make of the batch but for the size: teacher and student share that. No
    pixel mask is given, so the padding belongs to the image: predicted boxes, in 0..1, refer to the padded input.

    Args:
        model: an ``...ForObjectDetection`` of one of `FAMILIES`, kept as ``model``; its ``id2label`` names the classes.
        processor: the image processor that its weights were trained with.
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
        mean, std = normalization(pixels_of(processor))
        # Not persistent: checkpoints hold the library's own state dict, and a model's description the rest.
        self.register_buffer("class_of", class_of, persistent=False)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.levels = read_levels(Maps(self, self.maps))

    def features(self, images: Tensor) -> FeaturePyramid:
        """Run the model to its encoder and no further: level name -> ``N x C x H/stride x W/stride``.

        Raises:
            DfmsdError: the size of the images is of no use to the encoder.
        """
        return self._pyramid(self.maps(images))

    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[FeaturePyramid, dict[str, Tensor]]:
        """Give pyramid and the library's losses of one forward pass, in train and in eval mode.

        In train mode, denoising queries add their losses where the batch has a box.

        Raises:
            DfmsdError: the family can teach only, or the size of the images is of no use to the encoder.
        """
        if not self.family.learns:
            raise refuse_student(self.model.config.model_type)
        output, maps = self._run(images, labels=own_targets(targets, (images.shape[-2], images.shape[-1])))
        return self._pyramid(maps), dict(output.loss_dict)

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Detect objects, best first; boxes are clipped to each image's unpadded ``(height, width)``."""
        check_size(images)
        output = self.model(pixel_values=self._pixels(images))
        predicted = SimpleNamespace(logits=output.logits.float(), pred_boxes=output.pred_boxes.float())
        padded = [(images.shape[-2], images.shape[-1])] * len(images)
        found = self.processor.post_process_object_detection(predicted, threshold=SCORE_THRESHOLD, target_sizes=padded)
        return [self._own_detections(one, size) for one, size in zip(found, sizes, strict=True)]

    def description(self) -> dict[str, Any]:
        """Give the library's config and the processor's pixels, from which the model is built again."""
        return {"transformers": {"config": self.model.config.to_dict(), "pixels": pixels_of(self.processor)}}

    def maps(self, images: Tensor) -> Sequence[Tensor]:
        """Give the encoder's maps, finest first; what follows is not run."""
        return self._run(images, stop=True)[1]

    def _run(self, images: Tensor, *, stop: bool = False, **given: Any) -> tuple[Any, Sequence[Tensor]]:
        """Give the output of the model's own forward pass, if it is not to stop, and the encoder's maps.

        All families have an ``encoder``, but what is done to a backbone's maps before it is each one's own.
        """
        check_size(images)
        output = None
        with Watch({"encoder": self.model.model.encoder}, stop=stop) as calls:
            output = self.model(pixel_values=self._pixels(images), **given)
        (call,) = calls["encoder"]
        return output, self.family.read(call.output, call.given, (images.shape[-2], images.shape[-1]))

    def _pixels(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    def _pyramid(self, maps: Sequence[Tensor]) -> FeaturePyramid:
        return {level.name: value for level, value in zip(self.levels, maps, strict=True)}

    def _own_detections(self, found: Mapping[str, Tensor], size: tuple[int, int]) -> Detections:
        labels = self.class_of[found["labels"]]
        order = found["scores"].argsort(descending=True, stable=True)
        order = order[labels[order] >= 0][:DETECTIONS_PER_IMAGE]
        boxes = clip_boxes_to_image(found["boxes"][order], (int(size[0]), int(size[1])))
        return {"boxes": boxes, "scores": found["scores"][order], "labels": labels[order]}


def own_targets(targets: Sequence[Target], size: tuple[int, int]) -> list[dict[str, Tensor]]:
    """Write targets as the library wants them: ``class_labels``, and ``boxes`` as cxcywh in 0..1 of the padded input.

    Args:
        targets: boxes in pixels.
        size: height and width of the padded input.
    """
    height, width = size
    boxes = torch.cat([target["boxes"] for target in targets])
    scaled = box_convert(boxes, "xyxy", "cxcywh") / boxes.new_tensor([width, height, width, height])
    parts = scaled.split([len(target["boxes"]) for target in targets])
    return [{"class_labels": t["labels"], "boxes": part} for t, part in zip(targets, parts, strict=True)]


def pixels_of(processor: Any) -> dict[str, Any]:
    """Give what a processor does to pixels, but for their number, as JSON's types."""
    return {
        "do_rescale": bool(processor.do_rescale),
        "rescale_factor": float(processor.rescale_factor),
        "do_normalize": bool(processor.do_normalize),
        "image_mean": [float(value) for value in processor.image_mean],
        "image_std": [float(value) for value in processor.image_std],
    }


def normalization(pixels: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Give mean and standard deviation, ``3 x 1 x 1``, of pixels in [0, 1]; a processor's are of those it scaled."""
    scale = 255 * pixels["rescale_factor"] if pixels["do_rescale"] else 255.0
    mean, std = (pixels["image_mean"], pixels["image_std"]) if pixels["do_normalize"] else ([0.0] * 3, [1.0] * 3)
    return torch.tensor(mean).view(3, 1, 1) / scale, torch.tensor(std).view(3, 1, 1) / scale


def check_size(images: Tensor) -> None:
    """Refuse images whose sides are no multiples of `SIZE_STEP`.

    Raises:
        DfmsdError: says the size.
    """
    height, width = images.shape[-2:]
    if height % SIZE_STEP or width % SIZE_STEP:
        raise DfmsdError(f"images of {height} x {width} pixels: pad both sides to multiples of {SIZE_STEP}")


def refuse_student(model_type: str) -> DfmsdError:
    """Tell which families can be students."""
    able = ", ".join(name for name, family in FAMILIES.items() if family.learns)
    return DfmsdError(f"a transformers model of type {model_type} can only teach; as a student take one of {able}")
