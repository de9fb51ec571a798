"""What teachers that see more pixels than the student rule out."""

from __future__ import annotations

from collections.abc import Sequence

from dfmsd.data import DataConfig
from dfmsd.data.config import check_image_size
from dfmsd.distillation.stages import StageConfig
from dfmsd.errors import DfmsdError
from dfmsd.losses import HeadMethod, LossConfig, head_methods, replace_loss


def check_teacher_size(size: int, data: DataConfig, stages: Sequence[StageConfig], loss: LossConfig) -> None:
    """Refuse a size of the teachers' images that the rest of a run contradicts.

    Args:
        size: longer side of the images that the teachers see, in pixels.
        data: of the run.
        stages: of the run.
        loss: of the run.

    Raises:
        DfmsdError: the size is no multiple of 32 above the student's, or another key contradicts it.
    """
    check_image_size(size, "teacher_size")
    if size <= data.image_size:
        raise DfmsdError(
            f"teacher_size: {size} is not above data.image_size, {data.image_size}; leave it out, or raise it"
        )
    taught = [stage for stage in stages if stage.teachers]
    if not taught:
        raise DfmsdError("teacher_size: no stage has a teacher; leave it out")
    compared = [name for stage in taught for name in head_methods(replace_loss(loss, stage.loss), HeadMethod)]
    crops = data.augmentation.get("iou_crop", 0) > 0
    near = any(stage.near is not False for stage in stages)
    contradictions = {
        "the frames of the two sizes are not in proportion; set data.pad to square": data.pad == "batch",
        "data.iou_crop chooses crops by overlaps, which differ between the sizes; leave it out": crops,
        "data.multi_scale changes the ratio of the two sizes; leave it out": data.multi_scale is not None,
        "a near teacher is trained at the student's size; leave out near": near,
        f"{', '.join(compared)} compares predictions cell by cell; choose a loss on features": bool(compared),
    }
    for reason, holds in contradictions.items():
        if holds:
            raise DfmsdError(f"teacher_size: {reason}, or leave out teacher_size")
