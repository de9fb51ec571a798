"""Configuration of pseudo-labels: boxes of a detector as the annotations of unlabeled images."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from dfmsd.errors import DfmsdError
from dfmsd.utils.coerce import coerce_fields
from dfmsd.utils.files import check_path


@dataclass(frozen=True)
class PseudoConfig:
    """Pseudo-labels: a detector's boxes in unlabeled images, as further targets of the student's own loss.

    Attributes:
        score: Lowest score of a detection that becomes a box, above 0 and below 1. `auto` chooses it for each class, as
            the one with the highest F1 at IoU 0.5 on the images that `data.holdout` sets aside, or without it on the
            labeled training images. Null makes no pseudo-labels.
        teacher: The detector, as in a stage; null is the first teacher of the first stage.
        keep: Class of a box as the student's target: `hard`, 1 as for annotated boxes, or `soft`, the detector's score,
            for students whose loss can take that (fcos, retinanet, gfl).
        flip: Average the detector over each image and its mirror image.
        image_size: Longer side of the images that the detector sees, in pixels; null is `data.image_size`.
    """

    score: float | Literal["auto"] | None = None
    teacher: str | None = None
    keep: Literal["hard", "soft"] = "hard"
    flip: bool = False
    image_size: int | None = None

    def __post_init__(self) -> None:
        """Convert the values to their types, and check them; `DataConfig` checks the image size.

        Raises:
            DfmsdError: A value has the wrong type or is out of range.
        """
        coerce_fields(self, "data.pseudo.")
        if self.teacher is not None:
            check_path("data.pseudo.teacher", self.teacher)
        if isinstance(self.score, float) and not 0 < self.score < 1:
            raise DfmsdError(f"data.pseudo.score must be auto, or above 0 and below 1, got {self.score}")
        given = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        if self.score is None and given:
            raise DfmsdError(
                f"data.pseudo.{given[0]}: no image is labeled without data.pseudo.score; set that to auto or to a "
                "number, or leave this out"
            )
