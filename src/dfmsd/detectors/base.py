"""The detector contract, which training, distillation and evaluation rely on."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast, overload

import torch
from torch import Tensor, nn

from dfmsd.data.config import DataConfig, check_image_size
from dfmsd.detectors.config import DetectorConfig
from dfmsd.detectors.dense import DenseHead, HeadPass
from dfmsd.detectors.inference import device_of, eval_mode
from dfmsd.detectors.inputsizes import InputSizes
from dfmsd.errors import DfmsdError
from dfmsd.types import Detections, FeaturePyramid, LevelSpec, Queries, Target

if TYPE_CHECKING:
    from dfmsd.detectors.images import ImageLike
    from dfmsd.detectors.prediction import Prediction
    from dfmsd.detectors.tiling import Tiling

logger = logging.getLogger("dfmsd")
ClassRows = dict[str, list[int]]
"""Class name -> indices of its rows in a tensor."""
REST = ""
"""Key of the rows in `ClassRows` that belong to no class, such as those of the background."""
SCORE_THRESHOLD = 0.05
"""Detections below are dropped; low, since average precision needs the whole precision-recall curve."""
SHOWN_SCORE = 0.3
"""Detections below are not shown unless the user asks for them."""
DETECTIONS_PER_IMAGE = 100
"""COCO's metrics use no more."""
TILES_PER_BATCH = 8
UNUSED_CLASSES = ("__background__", "N/A")
"""Names that libraries give to labels without objects."""


class Detector(nn.Module, ABC):
    """A detector with a feature pyramid.

    ``images`` are always ``N x 3 x H x W``, RGB in [0, 1], padded; each adapter normalizes them for its own model, so
    that a teacher and a student can share one batch.
    """

    levels: tuple[LevelSpec, ...]
    """The pyramid, finest level first."""
    class_names: tuple[str, ...]
    """Label ``i`` is ``class_names[i]``; empty for a teacher without a detection head."""
    config: DetectorConfig | None = None
    """Configuration that :func:`~dfmsd.detectors.build_detector` built it from; None for other detectors."""
    image_size: int | None = None
    """Longer side of its training images in pixels, as a multiple of 32; None if unknown."""
    renamed = False
    """Whether `dfmsd.detectors.classnames.with_names` has given its classes the names of the data set."""
    input_sizes = InputSizes()
    """Sizes of images that the model can take."""
    _size_assumed = False
    model: Any
    """The wrapped model, whose state dict is saved; only a detector with a `config` needs one."""

    def choose_size(self, image_size: int | None = None, name: str = "image_size") -> int:
        """Return the longer side to resize images to, in pixels.

        Args:
            image_size: The user's choice; None takes that of the training. If it is unknown too, the default of
                `DataConfig`, or the next size that the model can take, is taken and logged, once.
            name: Name of the setting, for messages.

        Raises:
            DfmsdError: The choice is not a multiple of 32 from 32 to 16384, or the model cannot take such images.
        """
        if image_size is not None:
            check_image_size(image_size, name)
            self.input_sizes.check_side(image_size, name)
            return image_size
        if self.image_size is not None:
            return self.image_size
        assumed = self.input_sizes.fitting(DataConfig.image_size)
        if not self._size_assumed:
            self._size_assumed = True
            logger.warning(
                "the image size that the model was trained at is unknown: assuming %d pixels; %s states another",
                assumed,
                name,
            )
        return assumed

    @abstractmethod
    def features(self, images: Tensor) -> FeaturePyramid:
        """Run the model up to and including its neck, which is all that a teacher needs."""

    @abstractmethod
    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[FeaturePyramid, dict[str, Tensor]]:
        """Return the pyramid and the named losses (scalars) of ONE forward pass; required for a student."""

    @abstractmethod
    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Detect objects; boxes are clipped to each image's unpadded ``(height, width)``."""

    @overload
    def predict(  # type: ignore[overload-overlap]  # a string is one path, though also a sequence of strings
        self,
        images: ImageLike,
        *,
        score: float = SHOWN_SCORE,
        image_size: int | None = None,
        tiles: int | None = None,
        overlap: float | None = None,
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        images: Sequence[ImageLike],
        *,
        score: float = SHOWN_SCORE,
        image_size: int | None = None,
        tiles: int | None = None,
        overlap: float | None = None,
    ) -> list[Prediction]: ...

    def predict(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        score: float = SHOWN_SCORE,
        image_size: int | None = None,
        tiles: int | None = None,
        overlap: float | None = None,
    ) -> Prediction | list[Prediction]:
        """Detect objects in images of any size, resized and padded as in training.

        Args:
            images: An image, or a list of images: the path of a file; a PIL image; a uint8 array ``H x W x 3``, RGB; or
                a tensor ``3 x H x W``, RGB, uint8 or floating point in [0, 1].
            score: Detections with lower scores are dropped, 0..1.
            image_size: Longer side to resize to, in pixels, a multiple of 32; None uses that of the training.
            tiles: Side of the square tiles that a larger image is cut into, in its own pixels, at least 32; each is
                resized to ``image_size``. None does not cut.
            overlap: Share of a tile that neighbors have in common at least, from 0 to below 1; None is 0.2.

        Returns:
            The detections, in pixels of the original image; a list of them for a list of images.

        Raises:
            DfmsdError: An image cannot be read or has another type, shape or dtype; another argument is out of range;
                or the detector cannot detect.
        """
        from dfmsd.detectors.images import to_rgb  # here, since torchvision is slow to import
        from dfmsd.detectors.prediction import check_score
        from dfmsd.detectors.tiling import read_tiling

        check_score(score)
        tiling = read_tiling(tiles, overlap)
        size = self.choose_size(image_size)
        if isinstance(images, list | tuple):
            return [self._predict(to_rgb(image), score, size, tiling) for image in images]
        return self._predict(to_rgb(cast("ImageLike", images)), score, size, tiling)

    def _predict(self, image: Tensor, score: float, size: int, tiling: Tiling | None) -> Prediction:
        from dfmsd.data.inputs import to_batch
        from dfmsd.detectors.prediction import to_prediction
        from dfmsd.detectors.tiling import join_tiles, place_tiles

        tiles = place_tiles(image.shape[-2], image.shape[-1], tiling)
        parts: list[Prediction] = []
        for start in range(0, len(tiles), TILES_PER_BATCH):
            some = tiles[start : start + TILES_PER_BATCH]
            views = [image[:, top:bottom, left:right] for left, top, right, bottom in some]
            batch = to_batch(views, size)
            # no_grad, not inference_mode: anchors cached by a detector must still serve its training
            with eval_mode(self), torch.no_grad():
                found = self.detect(batch.images.to(device_of(self)), batch.sizes)
            parts += [
                to_prediction(one, view, scale, self.class_names, score)
                for one, view, scale in zip(found, views, batch.scales, strict=True)
            ]
        return join_tiles(parts, tiles, image)

    def description(self) -> dict[str, Any]:
        """Return what else rebuilding the model needs besides `config`, classes and levels, as JSON types."""
        return {}

    def class_rows(self) -> dict[str, ClassRows] | None:
        """Return the tensors of the model's state dict that depend on the classes, by key; None if they are unknown."""
        return None

    def backbone_layers(self) -> Sequence[nn.Module] | None:
        """Return the layers in front of neck and head, for their own learning rate; None, the default: unknown."""
        return None

    def compilable(self) -> Sequence[nn.Module]:
        """Return the layers for ``torch.compile``, none inside another; none at all, the default, if it is not tested.

        The shapes of what they return follow from those of their input.
        """
        return ()

    @property
    def soft_targets(self) -> bool:
        """Whether the classification loss takes the ``scores`` of targets; False, the default, if it ignores them."""
        return False

    @property
    def has_queries(self) -> bool:
        """Whether it predicts by queries, for losses on these predictions; the default is False."""
        return False

    def features_with_queries(self, images: Tensor) -> tuple[FeaturePyramid, Queries]:
        """Return the result of `features` and, from the same pass, the predictions of all queries.

        Raises:
            DfmsdError: The detector has no queries.
        """
        raise self._no_queries()

    def forward_with_queries(
        self, images: Tensor, targets: Sequence[Target]
    ) -> tuple[FeaturePyramid, dict[str, Tensor], Queries]:
        """Return the results of `forward` and, from the same pass, the predictions of all queries.

        Raises:
            DfmsdError: The detector has no queries.
        """
        raise self._no_queries()

    def _no_queries(self) -> DfmsdError:
        return DfmsdError(f"{type(self).__name__} has no queries; choose a loss on features")

    @property
    def dense_head(self) -> DenseHead | None:
        """The head, for losses on predictions; None, the default, if it cannot be cut."""
        return None

    def forward_with_head(
        self, images: Tensor, targets: Sequence[Target], reused: int
    ) -> tuple[FeaturePyramid, dict[str, Tensor], HeadPass]:
        """Return the results of `forward` and, from the same pass, the head's features ``reused`` convolutions early.

        Raises:
            DfmsdError: The detector has no `dense_head`.
        """
        raise DfmsdError(f"{type(self).__name__} has no dense head that can be cut; choose a loss on features")
