"""What the choices of a first config depend on: the data, the machine and the teacher."""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from typing import NamedTuple

from torch import Tensor

from dfmsd.data.config import DataConfig
from dfmsd.data.datamodule import CocoDataModule
from dfmsd.data.opening import has_split
from dfmsd.data.records import box_sizes
from dfmsd.data.splitcheck import annotated_classes
from dfmsd.detectors import Detector
from dfmsd.detectors.torchvision.heads import arch_of
from dfmsd.detectors.torchvision.wrap import TorchvisionDetector
from dfmsd.distillation.checks import check_classes
from dfmsd.engine.build import check_contents
from dfmsd.engine.teachers import find_recipe, refuse_unfinished, untrained_teacher
from dfmsd.types import LevelSpec
from dfmsd.utils.device import default_device, total_memory
from dfmsd.utils.files import check_path

HOLDOUT = 0.2
"""Share of the training images to evaluate on where there is no val split."""
PRECISE = 1024
"""Image size, in pixels, at which object sizes are measured before they are divided by it."""


class TeacherFacts(NamedTuple):
    """A teacher.

    Attributes:
        reference: As in `StageConfig`.
        arch: As in `DetectorConfig` where it is a torchvision detector, else the name of its class.
        parameters: Their number.
        levels: Its pyramid.
        head_convs: Convolutions of its head's towers; None if unknown.
        image_size: Longer side of its training images; None if unknown.
        class_names: Its classes; empty without a head.
    """

    reference: str
    arch: str
    parameters: int
    levels: tuple[LevelSpec, ...]
    head_convs: int | None
    image_size: int | None
    class_names: tuple[str, ...]

    @property
    def channels(self) -> int | None:
        """Width of its pyramid; None if its levels differ."""
        widths = {level.channels for level in self.levels}
        return widths.pop() if len(widths) == 1 else None


class Facts(NamedTuple):
    """Data, machine and teacher.

    Attributes:
        root: Of the data set.
        holdout: Share of the training images to evaluate on; 0 with a val split.
        train_images: Images to train on.
        val_images: Images to evaluate on.
        class_names: Of the data.
        sizes: Square root of the area of every training object, as a share of its image's longer side.
        side: Median longer side of the training images, in pixels.
        gpu: Whether there is one.
        memory: Bytes of RAM; None if unknown.
        teacher: None if it is still to be trained.
    """

    root: str
    holdout: float
    train_images: int
    val_images: int
    class_names: tuple[str, ...]
    sizes: Tensor
    side: int
    gpu: bool
    memory: int | None
    teacher: TeacherFacts | None


def gather(root: str, teacher: str | None = None, *, allow_weak_teacher: bool = False) -> Facts:
    """Read the data and look at the machine and the teacher, whose weights are not downloaded.

    Args:
        root: Data set folder, or ``digits``.
        teacher: Reference, as in `StageConfig`.
        allow_weak_teacher: Accept a teacher that knows none of the classes of the data.

    Raises:
        DfmsdError: The data cannot be trained on, or the teacher does not exist or knows none of its classes.
    """
    config = DataConfig(root=root, cache="off")
    holdout = 0.0 if has_split(config, "val") else HOLDOUT
    data = CocoDataModule(replace(config, holdout=holdout))
    check_contents(data)
    records = data.train.coco.records
    return Facts(
        root=root,
        holdout=holdout,
        train_images=len(data.train),
        val_images=len(data.val),
        class_names=data.class_names,
        sizes=box_sizes(records, PRECISE) / PRECISE,
        side=round(median(max(record.height, record.width) for record in records)),
        gpu=default_device().type != "cpu",
        memory=total_memory(),
        teacher=None if teacher is None else _look_at(teacher, data, allow_weak_teacher),
    )


def _look_at(reference: str, data: CocoDataModule, allow_weak_teacher: bool) -> TeacherFacts:
    check_path("teacher", reference)
    recipe = find_recipe(reference, {})
    if recipe is None:
        refuse_unfinished(reference)
    detector = untrained_teacher(reference, data.class_names)
    if detector.class_names and not allow_weak_teacher:
        check_classes(reference, detector.class_names, annotated_classes([data.train.coco, data.val.coco]))
    return describe_teacher(reference, detector, recipe.data.image_size if recipe else detector.image_size)


def describe_teacher(reference: str, detector: Detector, image_size: int | None) -> TeacherFacts:
    """Return the facts about a teacher.

    Args:
        reference: As in `StageConfig`.
        detector: It, or one of the same architecture.
        image_size: Of its training; None if unknown.
    """
    return TeacherFacts(
        reference,
        arch_of(detector.model) if isinstance(detector, TorchvisionDetector) else type(detector).__name__,
        sum(parameter.numel() for parameter in detector.parameters()),
        tuple(detector.levels),
        detector.config.head_convs if detector.config else None,
        image_size,
        detector.class_names,
    )
