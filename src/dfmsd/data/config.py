"""Data configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from dfmsd.data.pseudo import PseudoConfig
from dfmsd.errors import DfmsdError
from dfmsd.utils.coerce import check_range, coerce_fields
from dfmsd.utils.files import check_path

STRIDE = 32
"""Coarsest stride of common backbones; image sizes are multiples of it."""
PROBABILITIES = ("flip", "photometric", "zoom_out", "iou_crop", "mosaic", "mixup")
"""Augmentations that happen or do not."""
PRESETS: dict[str, dict[str, Any]] = {
    "none": {"flip": 0.0},
    "light": {"flip": 0.5},
    "strong": {"flip": 0.5, "scale_jitter": (0.6, 1.4), "photometric": 0.5, "mosaic": 0.5},
}
MAX_IMAGE_SIZE = 2**14
"""In pixels; a single frame of this size takes 3 GiB."""


@dataclass
class DataConfig:
    """Where the data come from and how batches are made.

    Attributes:
        root: Folder of the data set, whose layout is recognized (COCO, YOLO, Pascal VOC and their relatives), or
            `digits` for the built-in data set (`./digits` is a folder of that name).
        train: Split to train on: the name that it has there, or `{annotations: FILE.json, images: FOLDER}`, both in
            `root`; null is the one that is recognized.
        val: Split to evaluate on, likewise.
        test: Split for the last word, likewise; opened on request only.
        image_size: Longer side after resizing, in pixels; a multiple of 32.
        batch_size: Images per batch and process.
        pad: Pad to a square of `image_size` (`square`), or to the largest sides in the batch, rounded up to a multiple
            of 32 (`batch`).
        augment: Preset of the augmentations of training images: `none`, `light` (flips), or `strong` (flips, scales,
            colors and mosaics). The seven keys below override it one by one; null is as the preset says.
        flip: Probability of a horizontal flip, 0..1.
        scale_jitter: Lowest and highest factor of random rescaling; `[1, 1]` disables it.
        photometric: Probability of changing brightness, contrast, saturation and hue.
        zoom_out: Probability of placing the image on a black canvas of up to 2 times its sides.
        iou_crop: Probability of a random crop that keeps objects, as in SSD.
        mosaic: Probability of combining the image with three others.
        mixup: Probability of blending the image with another one.
        multi_scale: Lowest and highest factor of `image_size` for random sizes of whole training batches, in steps of
            32 pixels; null keeps `image_size`.
        mosaic_off: Last epochs without `mosaic` and `mixup`; null is a tenth of them, rounded up.
        augment_pool: Number of augmented versions of each image, which the epochs take in turn, so that a teacher cache
            can serve any augmentation; the epochs without mosaic and mixup have as many others. Null makes new ones in
            every epoch.
        holdout: Share of the training images, 0..0.5, to set aside and evaluate on instead of the val split, so that
            settings can be chosen without using val. It depends on the file names only and is the same in every run.
        unlabeled: Folder of images without annotations, used by the distillation terms only, unless `pseudo` gives them
            boxes; images that belong to `root` are skipped. Without it, and in stages without a teacher, batches hold
            labeled images only.
        unlabeled_ratio: Images of `unlabeled` per labeled image in a batch.
        pseudo: Boxes of a teacher in the images of `unlabeled`, made before training, as further targets of the
            student's own loss. Images without a confident detection stay unlabeled.
        workers: Data loader processes. Null: 0 if images are cached, else up to 4 but at least one core fewer than are
            available; the processes of a run on one machine share its cores.
        cache: Keep resized images (uint8) if all of them fit: in `ram` (without loader processes only), on `disk`
            (shared with other runs), or `off`. True means `ram`, false means `off`.
        cache_gib: Cache budget in GiB: of RAM, or of disk space for the images of all data sets.
    """

    root: str = "digits"
    train: str | dict[str, str] | None = None
    val: str | dict[str, str] | None = None
    test: str | dict[str, str] | None = None
    image_size: int = 256
    batch_size: int = 16
    pad: Literal["square", "batch"] = "square"
    augment: Literal["none", "light", "strong"] = "light"
    flip: float | None = None
    scale_jitter: tuple[float, float] | None = None
    photometric: float | None = None
    zoom_out: float | None = None
    iou_crop: float | None = None
    mosaic: float | None = None
    mixup: float | None = None
    multi_scale: tuple[float, float] | None = None
    mosaic_off: int | None = None
    augment_pool: int | None = None
    holdout: float = 0.0
    unlabeled: str | None = None
    unlabeled_ratio: float = 1.0
    pseudo: PseudoConfig = field(default_factory=PseudoConfig)
    workers: int | None = None
    cache: bool | Literal["ram", "disk", "off"] = "ram"
    cache_gib: float = 4.0

    def __post_init__(self) -> None:
        """Convert paths and NumPy scalars to built-in types, and check every value.

        Raises:
            DfmsdError: A value is out of range or of the wrong type.
        """
        coerce_fields(self, "data.")
        if isinstance(self.cache, bool):  # YAML reads `off` as false
            self.cache = "ram" if self.cache else "off"
        check_path("data.root", self.root)
        for name in ("train", "val", "test"):
            _check_split(name, getattr(self, name))
        if self.unlabeled is not None:
            check_path("data.unlabeled", self.unlabeled)
        check_image_size(self.image_size)
        check_range(self, ["batch_size"], "data.", minimum=1)
        check_range(self, ["workers", "mosaic_off"], "data.", minimum=0)
        check_range(self, ["augment_pool"], "data.", minimum=1)
        low, high = self.scale_jitter or (1.0, 1.0)
        unlabeled = self.unlabeled_ratio * self.batch_size
        requirements = {
            **{name: (0 <= (getattr(self, name) or 0) <= 1, "a probability, 0 to 1") for name in PROBABILITIES},
            "scale_jitter": (0 < low <= high < math.inf, "[low, high] with 0 < low <= high, or null"),
            "holdout": (0 <= self.holdout <= 0.5, "a share of the training images, 0 to 0.5"),
            "unlabeled_ratio": (0.5 < unlabeled < math.inf, "large enough for one unlabeled image per batch"),
            "cache_gib": (self.cache_gib > 0, "above 0"),
        }
        for key, (valid, expected) in requirements.items():
            if not valid:
                raise DfmsdError(f"data.{key} must be {expected}, got {getattr(self, key)!r}")
        if self.multi_scale is not None:
            self._check_multi_scale(*self.multi_scale)
        if self.labels_images:
            self._check_pseudo()

    def _check_multi_scale(self, low: float, high: float) -> None:
        if not 0 < low <= high < math.inf:
            raise DfmsdError(
                f"data.multi_scale must be [low, high] with 0 < low <= high, or null, got {self.multi_scale!r}"
            )
        if high * self.image_size > MAX_IMAGE_SIZE:
            raise DfmsdError(
                f"data.multi_scale: {high:g} x image_size {self.image_size} is more than {MAX_IMAGE_SIZE} pixels; lower"
                " it"
            )
        if len(self.batch_sizes) < 2:
            raise DfmsdError(
                f"data.multi_scale: {low * self.image_size:g} to {high * self.image_size:g} pixels hold "
                f"{len(self.batch_sizes) or 'no'} multiple of {STRIDE}, so there is nothing to choose from; widen it"
            )

    def _check_pseudo(self) -> None:
        if self.unlabeled is None:
            raise DfmsdError(
                "data.pseudo: there are no images to label; name a folder of them with data.unlabeled, or leave it out"
            )
        if self.pseudo.image_size is not None:
            check_image_size(self.pseudo.image_size, "data.pseudo.image_size")

    @property
    def labels_images(self) -> bool:
        """Whether the images of `unlabeled` get boxes of a teacher."""
        return self.pseudo.score is not None

    @property
    def labeling_size(self) -> int:
        """Longer side of the images in which a teacher finds those boxes, in pixels."""
        return self.pseudo.image_size or self.image_size

    def labeled_only(self) -> DataConfig:
        """Return the same data without unlabeled images."""
        return replace(self, unlabeled=None, pseudo=PseudoConfig())

    @property
    def augmentation(self) -> dict[str, Any]:
        """The switches of `Augmentation`: those of the preset, and what overrides them."""
        overrides = {name: getattr(self, name) for name in (*PROBABILITIES, "scale_jitter")}
        return PRESETS[self.augment] | {name: value for name, value in overrides.items() if value is not None}

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Longer sides of the images of training batches, in pixels."""
        if self.multi_scale is None:
            return (self.image_size,)
        low, high = (round(factor * self.image_size / STRIDE, 6) for factor in self.multi_scale)
        return tuple(STRIDE * number for number in range(max(1, math.ceil(low)), math.floor(high) + 1))

    @property
    def mean_area(self) -> float:
        """Mean number of pixels of a training batch, relative to one of `image_size`."""
        return sum(size**2 for size in self.batch_sizes) / len(self.batch_sizes) / self.image_size**2

    def versions(self, epochs: int) -> int | None:
        """Return the number of versions, at most, in which an image appears in a run of this many epochs.

        None if it looks new in every epoch. A pool has other versions in the last epochs, without mosaic and mixup.
        """
        flips = 1 if self.augmentation["flip"] in (0, 1) else 2
        if not self.unrepeated:
            return min(flips, self.augment_pool or flips)
        if not self.augment_pool:
            return None
        return sum(min(self.augment_pool, phase) for phase in self.phases(epochs))

    @property
    def unrepeated(self) -> list[str]:
        """Names of the augmentations whose pixels rarely come back."""
        switches = {name: value for name, value in self.augmentation.items() if name != "flip"}
        return [name for name, value in switches.items() if value not in (0, (1.0, 1.0))]

    @property
    def uncacheable(self) -> str | None:
        """Why features of these images cannot be stored for later epochs, and what to change; None if they can."""
        if self.multi_scale is not None:
            return (
                "data.multi_scale resizes whole batches at random, so no stored feature would ever be used again; "
                "leave data.multi_scale out"
            )
        if self.unrepeated and not self.augment_pool:
            return (
                f"data.{self.unrepeated[0]} changes the pixels in every epoch, so no stored feature would ever be used "
                "again; set data.augment_pool"
            )
        if self.pad == "batch":
            return (
                "with data.pad `batch` the frame, and so the features, depend on the other images of the batch; set "
                "data.pad to square"
            )
        return None

    def unmixed_epochs(self, epochs: int) -> int:
        """Return the number of last epochs without mosaic and mixup, in a run of this many epochs."""
        return min(epochs, math.ceil(epochs / 10) if self.mosaic_off is None else self.mosaic_off)

    def phases(self, epochs: int) -> tuple[int, int]:
        """Return the number of epochs with the augmentations of the first one, and of those at the end without mixing.

        The latter are none where nothing is ever mixed.
        """
        switches = self.augmentation
        mixes = bool(switches.get("mosaic") or switches.get("mixup"))
        unmixed = self.unmixed_epochs(epochs) if mixes else 0
        return epochs - unmixed, unmixed


def _check_split(name: str, value: str | dict[str, str] | None) -> None:
    if value == "" or (isinstance(value, dict) and value.keys() != {"annotations", "images"}):
        raise DfmsdError(
            f"data.{name} must be the name of a split or {{annotations: FILE.json, images: FOLDER}}, got {value!r}"
        )


def check_image_size(image_size: Any, name: str = "data.image_size") -> None:
    """Check that feature pyramids can take images of this size.

    Args:
        image_size: Longer side in pixels.
        name: Name of the setting, for the message.

    Raises:
        DfmsdError: It is not a multiple of 32 from 32 to 16384.
    """
    whole = isinstance(image_size, int | np.integer)
    if not whole or not STRIDE <= image_size <= MAX_IMAGE_SIZE or image_size % STRIDE:
        raise DfmsdError(
            f"{name} must be a multiple of {STRIDE}, at least {STRIDE} and at most {MAX_IMAGE_SIZE}, got {image_size!r}"
        )
