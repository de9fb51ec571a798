"""Adapter of the detectors of Hugging Face transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

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
from dfmsd.detectors.huggingface.families import FAMILIES, needed_area
from dfmsd.detectors.levels import DRY_RUN_SIZE, read_levels
from dfmsd.errors import DfmsdError
from dfmsd.types import Detections, FeaturePyramid, Queries, Target
from dfmsd.utils.shapes import frame_of

CLASS_LAYERS = ("class_embed", "enc_score_head")
"""Parts of the names of a student's layers whose width is the number of classes."""


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
        self.used = tuple(used)
        model.loss_function = partial(in_float32, model.loss_function)
        class_of = torch.full((max(names) + 1,), -1)
        class_of[used] = torch.arange(len(used))
        mean, std = normalization(processor_settings(processor))
        # Not persistent: checkpoints hold the library's own state dict, and a model's description the rest.
        self.register_buffer("class_of", class_of, persistent=False)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.input_sizes = self.family.sizes(model.config)
        self.levels = read_levels(self, self.maps, side=self.input_sizes.fitting(DRY_RUN_SIZE))
        self.input_sizes = self.input_sizes._replace(area=needed_area(self.family, model.config, self.levels))

    def features(self, images: Tensor) -> FeaturePyramid:
        """Run the model up to its maps: level name -> ``N x C x H/stride x W/stride``.

        Raises:
            DfmsdError: The model cannot take images of this size.
        """
        return self._pyramid(self.maps(images))

    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[FeaturePyramid, dict[str, Tensor]]:
        """Return the pyramid and the library's losses of one forward pass, in train and in eval mode.

        In train mode, denoising queries, or further groups of queries, add their losses.

        Raises:
            DfmsdError: The family can only teach, or the model cannot take images of this size.
        """
        pyramid, losses, _ = self.forward_with_queries(images, targets)
        return pyramid, losses

    @property
    def has_queries(self) -> bool:
        """True."""
        return True

    def features_with_queries(self, images: Tensor) -> tuple[FeaturePyramid, Queries]:
        """Run the whole model; return its maps and the predictions of the last decoder layer."""
        output, maps = self._run(images)
        return self._pyramid(maps), self._queries(output)

    def forward_with_queries(
        self, images: Tensor, targets: Sequence[Target]
    ) -> tuple[FeaturePyramid, dict[str, Tensor], Queries]:
        """Return the results of `forward`, and the predictions without those of denoising and of further groups.

        Raises:
            DfmsdError: The family can only teach, or the model cannot take images of this size.
        """
        if not self.family.trainable:
            raise refuse_student(self.model.config.model_type)
        output, maps = self._run(images, labels=to_library_targets(targets, frame_of(images)))
        return (
            self._pyramid(maps),
            self.family.weighted(output.loss_dict, self.model.config),
            self._queries(output),
        )

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Detect objects, best first; boxes are clipped to each image's unpadded ``(height, width)``."""
        self.input_sizes.check(images)
        output = self.model(pixel_values=self._normalize(images))
        predicted = SimpleNamespace(logits=output.logits.float(), pred_boxes=output.pred_boxes.float())
        results = self.processor.post_process_object_detection(
            predicted, threshold=SCORE_THRESHOLD, target_sizes=[frame_of(images)] * len(images)
        )
        return [self._to_detections(result, size) for result, size in zip(results, sizes, strict=True)]

    def description(self) -> dict[str, Any]:
        """Return the library's config and the processor's normalization, to rebuild the model from."""
        settings = processor_settings(self.processor)
        return {"transformers": {"config": self.model.config.to_dict(), "pixels": settings}}

    def backbone_layers(self) -> Sequence[nn.Module]:
        """Return the library's backbone, without the layers that project its maps."""
        return [module for name, module in self.model.named_modules() if name in self.family.backbone]

    def class_rows(self) -> dict[str, ClassRows]:
        """Return the rows of each class in the layers that predict classes, and in the embedding of noisy ones."""
        rows = {name: [int((self.class_of == index).nonzero())] for index, name in enumerate(self.class_names)}
        state = self.model.state_dict()
        layers = {key: value for key, value in state.items() if any(layer in key for layer in CLASS_LAYERS)}
        labels = self.model.config.num_labels
        return {key: {**rows, REST: list(range(labels, len(value)))} for key, value in layers.items()}

    def maps(self, images: Tensor) -> Sequence[Tensor]:
        """Return the maps, finest first, without running the rest of the model."""
        return self._run(images, stop=True)[1]

    def _run(self, images: Tensor, *, stop: bool = False, **kwargs: Any) -> tuple[Any, Sequence[Tensor]]:
        """Run the model; return its output, None if stopped after the maps, and the maps."""
        self.input_sizes.check(images)
        output = None
        with FeatureHooks({"maps": self.model.get_submodule(self.family.source)}, stop=stop) as calls:
            output = self.model(pixel_values=self._normalize(images), **kwargs)
        (call,) = calls["maps"]
        return output, self.family.read(call, self.model.config, frame_of(images))

    def _queries(self, output: Any) -> Queries:
        queries = self.family.own_queries(Queries(output.logits.float(), output.pred_boxes.float()), self.model.config)
        return queries._replace(logits=queries.logits[..., self.used])

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


def in_float32(loss: Callable[..., Any], logits: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Call one of the library's losses in float32: some take logarithms of what bfloat16 rounds to 0."""

    def exact(value: Any) -> Any:
        return value.float() if torch.is_tensor(value) and value.is_floating_point() else value

    with torch.autocast(logits.device.type, enabled=False):
        return loss(exact(logits), *map(exact, args), **{name: exact(value) for name, value in kwargs.items()})


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
