"""Reasons why a stage cannot have a near teacher, as far as its config shows."""

from __future__ import annotations

from typing import NamedTuple

from dfmsd.detectors.config import OWN_ARCHS, PYTHON, DetectorConfig
from dfmsd.distillation.stages import NearConfig, StageConfig
from dfmsd.losses import LossConfig, head_methods
from dfmsd.utils.coerce import AUTO


class Obstacle(NamedTuple):
    """Why something cannot be done, and what to do instead."""

    reason: str
    remedy: str


def obstacle(stage: StageConfig, student: DetectorConfig, loss: LossConfig) -> Obstacle | None:
    """Return why a stage cannot have a near teacher; None if it can.

    Args:
        stage: its ``near`` is a `NearConfig`.
        student: of the run.
        loss: of the stage.
    """
    assert isinstance(stage.near, NearConfig)
    if len(stage.teachers) != 1:
        count = len(stage.teachers) or "no"
        return Obstacle(f"the stage has {count} teachers", "give it exactly one, or leave near out")
    if student.arch not in (*OWN_ARCHS, AUTO):
        return Obstacle(
            f"{student.arch} brings its own backbone, so no near teacher can be built on a bigger one",
            f"choose a student from {', '.join(OWN_ARCHS)}, or leave near out",
        )
    return _contradiction(stage) or _unfit_loss(loss) or _no_epochs(stage, stage.near)


def _contradiction(stage: StageConfig) -> Obstacle | None:
    (teacher,) = stage.teachers
    if stage.basis != "auto":
        return Obstacle(f"{teacher} is rotated into the near teacher's channels", f"leave out basis: {stage.basis}")
    if not stage.fresh:
        return Obstacle("the near teacher starts with new layers", "leave out fresh: false")
    assert isinstance(stage.near, NearConfig)
    if stage.near.bridge and teacher.startswith(PYTHON):
        return Obstacle("a bridge is reused, but its teacher exists in this program only", "save it, or bridge: false")
    return None


def _unfit_loss(loss: LossConfig) -> Obstacle | None:
    compared = head_methods(loss)
    if not compared:
        return None
    return Obstacle(
        f"{compared[0]} compares predictions, which cannot be rotated", "choose a loss on features such as dfmsd"
    )


def _no_epochs(stage: StageConfig, near: NearConfig) -> Obstacle | None:
    first, second = stage.lengths
    if first and second:
        return None
    left_out = stage.teachers[0] if first else "the near teacher"
    return Obstacle(
        f"a share of {near.share:.2g} of {stage.epochs} epoch(s) leaves none for {left_out}",
        "give the stage more epochs, or change near.share",
    )
