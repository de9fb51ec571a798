"""Adapter of Ultralytics' YOLO detectors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_convert, clip_boxes_to_image

from dfmsd.detectors.base import DETECTIONS_PER_IMAGE, ClassRows, Detector
from dfmsd.detectors.inference import eval_mode
from dfmsd.detectors.inputsizes import InputSizes
from dfmsd.detectors.levels import read_levels
from dfmsd.types import Detections, FeaturePyramid, Target

SCORE_THRESHOLD = 0.001
"""The library's own, for measuring AP."""
NMS_IOU = 0.7
CANDIDATES = 3000
"""Boxes of an image, the best ones, that are compared with each other."""
CLASS_TOWERS = "cv3."
"""Part of the keys of the layers that predict classes."""
CLASS_LAYERS = re.compile(r"cv3\.\d+\.2\.(weight|bias)$")
LOSSES = ("box", "cls", "dfl")


class UltralyticsDetector(Detector):
    """A YOLO detector of the library (YOLOv8, 11, 12, 26); its losses keep the library's weights and assignment.

    The pyramid consists of the inputs of the detection head. Images are RGB in 0..1, as the library's own, and padded
    at the right and the bottom rather than on all sides. The library multiplies its loss by the batch size; here it is
    a mean. The two heads of an end-to-end model (YOLO26) keep the weights with which the library starts.

    Args:
        model: A ``DetectionModel``, kept as ``model``; its ``yaml`` describes it.
        class_names: Label ``i`` is ``class_names[i]``.
    """

    def __init__(self, model: Any, class_names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.class_names = tuple(class_names)
        self.input_sizes = InputSizes(step=int(model.stride.max()))
        self.levels = read_levels(self, self._maps)

    def features(self, images: Tensor) -> FeaturePyramid:
        """Run backbone and neck: level name -> ``N x C x H/stride x W/stride``."""
        return self._pyramid(self._maps(images))

    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[FeaturePyramid, dict[str, Tensor]]:
        """Return the pyramid and the library's losses of one forward pass, in train and in eval mode."""
        maps = self._maps(images)
        predictions = self._head(list(maps))
        losses, _ = self.model.init_criterion()(predictions, _labels(images, targets))
        return self._pyramid(maps), dict(zip(LOSSES, losses / len(images), strict=True))

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Detect objects, best first; boxes are clipped to each image's unpadded ``(height, width)``."""
        with eval_mode(self):
            decoded, _ = self._head(list(self._maps(images)))
        select = _best if self._head.end2end else _suppress
        return [_clip(select(output.float()), size) for output, size in zip(decoded, sizes, strict=True)]

    def description(self) -> dict[str, Any]:
        """Return the library's description of the model, to rebuild it from."""
        return {"ultralytics": self.model.yaml}

    def class_rows(self) -> dict[str, ClassRows]:
        """Return the rows of each class in the last layers of the class towers."""
        layers = [key for key in self.model.state_dict() if CLASS_LAYERS.search(key)]
        return {key: {name: [label] for label, name in enumerate(self.class_names)} for key in layers}

    def backbone_layers(self) -> Sequence[nn.Module]:
        """Return the layers that the library's description lists as the backbone."""
        return list(self.model.model[: len(self.model.yaml["backbone"])])

    @property
    def _head(self) -> Any:
        return self.model.model[-1]

    def _maps(self, images: Tensor) -> list[Tensor]:
        """Run the layers in front of the head as the library does, and return the head's inputs."""
        self.input_sizes.check(images)
        outputs: list[Tensor | None] = []
        value: Any = images
        for layer in self.model.model[:-1]:
            if layer.f != -1:  # of other layers than the one before
                value = _inputs(layer.f, value, outputs)
            value = layer(value)
            outputs.append(value if layer.i in self.model.save else None)
        maps: list[Tensor] = _inputs(self._head.f, value, outputs)
        return maps

    def _pyramid(self, maps: Sequence[Tensor]) -> FeaturePyramid:
        return {level.name: value for level, value in zip(self.levels, maps, strict=True)}


def _inputs(source: int | list[int], last: Any, outputs: Sequence[Tensor | None]) -> Any:
    """Return the inputs of a layer: outputs of the layers that it names, -1 for the last one."""
    if isinstance(source, int):
        return outputs[source]
    return [last if index == -1 else outputs[index] for index in source]


def _labels(images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
    """Return targets in the library's form: one row per object, boxes as centre and size relative to the input."""
    height, width = images.shape[-2:]
    boxes = torch.cat([target["boxes"] for target in targets])
    counts = torch.tensor([len(target["boxes"]) for target in targets], device=boxes.device)
    return {
        "batch_idx": torch.arange(len(targets), device=boxes.device).repeat_interleave(counts).float(),
        "cls": torch.cat([target["labels"] for target in targets]).float(),
        "bboxes": box_convert(boxes, "xyxy", "cxcywh") / boxes.new_tensor([width, height, width, height]),
    }


def _suppress(output: Tensor) -> Detections:
    """Select the best boxes of ``(4 + classes) x cells``, centre and size in pixels, for every class of a cell."""
    scores, order = output[4:].flatten().sort(descending=True, stable=True)
    kept = order[scores > SCORE_THRESHOLD][:CANDIDATES]
    scores, labels, cells = scores[: len(kept)], kept // output.shape[1], kept % output.shape[1]
    boxes = box_convert(output[:4, cells].T, "cxcywh", "xyxy")
    found = batched_nms(boxes, scores, labels, NMS_IOU)[:DETECTIONS_PER_IMAGE]
    return {"boxes": boxes[found], "scores": scores[found], "labels": labels[found]}


def _best(output: Tensor) -> Detections:
    """Select the best of ``boxes x 6``, corners in pixels, score and class, of a head that needs no suppression."""
    output = output[output[:, 4].argsort(descending=True, stable=True)]
    output = output[output[:, 4] > SCORE_THRESHOLD][:DETECTIONS_PER_IMAGE]
    return {"boxes": output[:, :4], "scores": output[:, 4], "labels": output[:, 5].long()}


def _clip(found: Detections, size: tuple[int, int]) -> Detections:
    return {**found, "boxes": clip_boxes_to_image(found["boxes"], (int(size[0]), int(size[1])))}
