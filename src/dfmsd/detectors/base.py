"""The contract between a detector and everything that trains, distils or evaluates it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast, overload

import torch
from torch import Tensor, nn

from dfmsd.data.config import DataConfig, check_image_size
from dfmsd.detectors.config import DetectorConfig
from dfmsd.detectors.inference import device_of, eval_mode
from dfmsd.errors import DfmsdError
from dfmsd.types import Detections, FeaturePyramid, LevelSpec, Target

if TYPE_CHECKING:
    from dfmsd.detectors.images import ImageLike
    from dfmsd.detectors.prediction import Prediction

SCORE_THRESHOLD = 0.05
"""Detections below are dropped: low, since average precision wants the whole curve."""
DETECTIONS_PER_IMAGE = 100
"""COCO's metrics look at no more."""
UNUSED_CLASSES = ("__background__", "N/A")
"""What libraries call the labels that no object has."""


class HeadSpec(NamedTuple):
    """What a dense head is made of: equal heads can take each other's features, whatever their number of ``convs``."""

    arch: str
    """``fcos``, ``retinanet`` or ``gfl``, as in `DetectorConfig`."""
    classes: tuple[str, ...]
    strides: tuple[int, ...]
    anchors: tuple[tuple[object, ...], ...]
    """Sizes and aspect ratios on each level."""
    channels: int
    """Of its towers."""
    convs: int
    """Convolutions in each tower."""
    bins: int = 0
    """Of the distribution of a box's side; 0 where a side is one number."""


class Towers(NamedTuple):
    """A dense head's features of one level where its towers are cut: behind a normalisation, before the activation."""

    classification: Tensor
    """``N x C x H x W``."""
    regression: Tensor
    """``N x C x H x W``."""


class HeadPass(NamedTuple):
    """What a dense head met on the way to its losses; the keys are level names, ``A`` anchors lie on a level."""

    towers: Mapping[str, Towers]
    logits: Mapping[str, Tensor]
    """``N x A x K``."""
    box_deltas: Mapping[str, Tensor]
    """Encoded boxes, ``N x A x E``; ``E`` is 4, or 4 times the bins of a side."""
    anchors: Mapping[str, Tensor]
    """``A x 4``, xyxy in input pixels, the same for every image."""
    valid: Mapping[str, Tensor]
    """Bool, ``N x A``: False where an anchor is neither object nor background."""
    objects: Mapping[str, Tensor]
    """Bool, ``N x A``: True where an anchor learns an object."""
    near: Mapping[str, Tensor]
    """``N x A``, 0..1: overlap of anchors that nearly match an object; 0 elsewhere, and where a head knows no such."""
    positives: Tensor
    """Scalar: what the anchors on objects weigh together, in FCOS their centerness, else 1 each."""


class DenseHead(Protocol):
    """A head on every cell of every level, whose towers can be cut so that ``reused`` convolutions are left."""

    @property
    def spec(self) -> HeadSpec:
        """What it is made of."""

    def at(self, level: int) -> DenseHead:
        """Give the head as it is on one level, by its index: convolutions are shared, what follows need not be."""

    def towers(self, level: Tensor, reused: int) -> Towers:
        """Run the towers of one level to the cut; ``0 <= reused < convs``."""

    def predict(self, towers: Towers, reused: int) -> tuple[Tensor, Tensor]:
        """Run the rest, activation first: logits ``N x A x K`` and encoded boxes ``N x A x E``."""

    def decode(self, box_deltas: Tensor, anchors: Tensor) -> Tensor:
        """Turn encoded boxes ``N x A x E`` into xyxy in input pixels, ``N x A x 4``; ``anchors`` are ``A x 4``."""


class Detector(nn.Module, ABC):
    """A detector whose feature pyramid can be read.

    ``images`` is always ``N x 3 x H x W``, RGB in [0, 1], padded; each adapter normalises the pixels
    for *its* model, so that a teacher and a student can share one batch.
    """

    levels: tuple[LevelSpec, ...]
    """The pyramid, finest level first, read off the model."""
    class_names: tuple[str, ...]
    """Label ``i`` is ``class_names[i]``; empty for a teacher that has no detection head."""
    config: DetectorConfig | None = None
    """What :func:`~dfmsd.detectors.build_detector` was told; None for a detector that was made otherwise."""
    image_size: int | None = None
    """Longer side, in pixels, of the images that the detector was trained on; None where it is unknown."""
    model: Any
    """The wrapped model, whose own state dict is what a saved file holds; only a detector with a `config` needs it."""

    @property
    def input_size(self) -> int:
        """Longer side, in pixels, that images are resized to: `image_size`, or the default of `DataConfig`."""
        return self.image_size or DataConfig.image_size

    @abstractmethod
    def features(self, images: Tensor) -> FeaturePyramid:
        """Run the model to its neck and no further: a teacher's path."""

    @abstractmethod
    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[FeaturePyramid, dict[str, Tensor]]:
        """Give pyramid and named losses (scalars) of ONE forward pass: a student's path."""

    @abstractmethod
    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Detect objects; boxes are clipped to each image's unpadded ``(height, width)``."""

    @overload
    def predict(  # type: ignore[overload-overlap]  # a string is one path, though also a sequence of strings
        self, images: ImageLike, *, score: float = 0.3, image_size: int | None = None
    ) -> Prediction: ...

    @overload
    def predict(
        self, images: Sequence[ImageLike], *, score: float = 0.3, image_size: int | None = None
    ) -> list[Prediction]: ...

    def predict(
        self, images: ImageLike | Sequence[ImageLike], *, score: float = 0.3, image_size: int | None = None
    ) -> Prediction | list[Prediction]:
        """Detect objects in images of any size, resized and padded as in training.

        Args:
            images: An image, or a list of images: the path of a file; a PIL image; a uint8 array ``H x W x 3``, RGB; or
                a tensor ``3 x H x W``, RGB, uint8 or floating point in [0, 1].
            score: Detections with lower scores are dropped, 0..1.
            image_size: Longer side to resize to, in pixels, a multiple of 32; None uses `input_size`.

        Returns:
            The detections, in pixels of the original image; a list of them for a list of images.

        Raises:
            DfmsdError: An image cannot be read or has another type, shape or dtype; ``score`` or ``image_size`` is out
                of range; or the detector cannot detect.
        """
        from dfmsd.detectors.images import to_rgb  # here, since torchvision is slow to import
        from dfmsd.detectors.prediction import check_score

        size = self.input_size if image_size is None else image_size
        check_score(score)
        check_image_size(size, "image_size")
        if isinstance(images, list | tuple):
            return [self._predict(to_rgb(image), score, size) for image in images]
        return self._predict(to_rgb(cast("ImageLike", images)), score, size)

    def _predict(self, image: Tensor, score: float, size: int) -> Prediction:
        from dfmsd.data.inputs import to_batch
        from dfmsd.detectors.prediction import to_prediction

        batch = to_batch(image, size)
        # no_grad, not inference_mode: anchors cached by a detector must still serve its training
        with eval_mode(self), torch.no_grad():
            (detections,) = self.detect(batch.images.to(device_of(self)), batch.sizes)
        return to_prediction(detections, image, batch.scales[0], self.class_names, score)

    def description(self) -> dict[str, Any]:
        """Tell what a saved file needs, beside `config`, classes and levels, to build the model again, as JSON."""
        return {}

    @property
    def dense_head(self) -> DenseHead | None:
        """The head, for losses on predictions; None, the default, where there is none that can be cut."""
        return None

    def forward_with_head(
        self, images: Tensor, targets: Sequence[Target], reused: int
    ) -> tuple[FeaturePyramid, dict[str, Tensor], HeadPass]:
        """Give what `forward` gives and, of the same pass, the features where ``reused`` convolutions are left.

        Raises:
            DfmsdError: the detector has no `dense_head`.
        """
        raise DfmsdError(f"{type(self).__name__} has no dense head that can be cut; choose a loss on features")
