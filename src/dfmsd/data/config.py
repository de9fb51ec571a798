"""What a user may say about the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass
class DataConfig:
    """Where the data are and how they are fed.

    Attributes:
        root: Folder in the COCO layout, or `digits` for the embedded data set (a folder of that name is `./digits`).
        image_size: Longer side in pixels after resizing, a multiple of 32.
        batch_size: Images in a batch of one process.
        pad: Pad to a square of image_size (`square`), or to the batch's largest sides rounded up to 32 (`batch`).
        flip: Probability of a horizontal flip in training, 0..1.
        scale_jitter: Lowest and highest random factor of the content's size in training, or none.
        holdout: Share of the training images that is put aside and evaluated on in place of the val split, 0..0.5: for
            choosing settings without a look at val. File names decide which, so that it is always the same part.
        unlabeled: Folder of images without annotations, which feed the distillation terms only; with none of them, or
            in a stage without a teacher, images with annotations alone. Those of `root` itself are left out.
        unlabeled_ratio: How many of them join the images of a batch, relative to `batch_size`.
        workers: Loader processes. Without a number: 0 where images are cached, otherwise up to 4, at most one for each
            core of this process but the first; the processes of a run on one machine share its cores.
        cache: Keep resized images (uint8), if all of them fit: in `ram`, if there are no loader processes; on `disk`,
            where other runs find them too; or not (`off`). True is `ram`, false is `off`.
        cache_gib: Most GiB of RAM that they take, or of disk together with the images of other data sets.
    """

    root: str = "digits"
    image_size: int = 256
    batch_size: int = 16
    pad: Literal["square", "batch"] = "square"
    flip: float = 0.5
    scale_jitter: tuple[float, float] | None = None
    holdout: float = 0.0
    unlabeled: str | None = None
    unlabeled_ratio: float = 1.0
    workers: int | None = None
    cache: bool | Literal["ram", "disk", "off"] = "ram"
    cache_gib: float = 4.0

    def __post_init__(self) -> None:
        """Give truth values of ``cache``, such as YAML's ``off``, their names."""
        if isinstance(self.cache, bool):
            self.cache = "ram" if self.cache else "off"
