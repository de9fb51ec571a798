"""Basis of a stage's teacher: whether its levels are rotated, and into which reference."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dfmsd.detectors.base import Detector
from dfmsd.errors import DfmsdError
from dfmsd.losses import Criterion, CriterionSum, HeadMethod
from dfmsd.losses.align import Align
from dfmsd.losses.basis import BasisName, PyramidBasis
from dfmsd.types import LevelSpec

AnyCriterion = Criterion | CriterionSum


def choose_basis(
    name: BasisName,
    criterion: AnyCriterion,
    former: AnyCriterion | None,
    student: Detector,
    teacher: Detector,
    *,
    same_teacher: bool = False,
    learned: bool = True,
) -> BasisName:
    """Resolve ``auto``; other names are returned unchanged.

    ``auto`` rotates for losses that are meant for it (`Method.rotates`), and only between levels of equal width: into
    the basis of the former teacher if there is one, else into the student's if the detectors are of different kinds. A
    student with ``project: true`` keeps its own channels, and so needs no rotation. Nor does a teacher that goes on in
    its own channels, or a student that has not learned anything of its own.

    Args:
        name: see `StageConfig`.
        criterion: the loss between student and teacher, which pairs their levels.
        former: the loss of the former stage's only teacher; None if it had none, or several.
        student: the student.
        teacher: the teacher.
        same_teacher: whether the former stage's teacher is this one.
        learned: whether the student has channels of its own when the basis is fitted: after some steps with labels, or
            an earlier stage.
    """
    if name != "auto":
        return name
    if not criterion.pairs or not all(method.rotates for method in criterion.methods) or _projects(criterion):
        return "own"
    if former is not None and _fits(criterion, _taught_by(former)):
        return "own" if same_teacher and former.basis is None else "former"
    students = {pair.student.name: pair.student for pair in criterion.pairs}
    foreign = _kind(student) != _kind(teacher) and _fits(criterion, students)
    return "student" if learned and foreign else "own"


def build_basis(
    name: BasisName, criterion: AnyCriterion, teacher: Sequence[LevelSpec], former: AnyCriterion | None
) -> PyramidBasis | None:
    """Build the basis of a teacher's levels, which is still to be fitted; None for the teacher's own.

    Args:
        name: ``own``, ``student`` or ``former``.
        criterion: the loss between student and teacher, which pairs their levels.
        teacher: levels of the teacher.
        former: the loss of the former stage's only teacher, the reference of ``former``.

    Raises:
        DfmsdError: the loss compares predictions, the former teacher does not teach all levels, or losses of a sum
            pair a level of the teacher with different references.
    """
    if name == "own":
        return None
    if not criterion.pairs or any(isinstance(method, HeadMethod) for method in criterion.methods):
        raise DfmsdError(
            "basis: the loss compares predictions, which no rotation of features changes; choose basis: own"
        )
    references = {pair.student.name: pair.student for pair in criterion.pairs}
    if name == "former":
        assert former is not None, "check_stages refuses this"
        references = _taught_by(former)
    missing = [pair.student.name for pair in criterion.pairs if pair.student.name not in references]
    if missing:
        raise DfmsdError(
            f"basis: the former stage does not teach {', '.join(missing)} of the student, only "
            f"{', '.join(references)}; choose basis: student or own"
        )
    levels: dict[str, LevelSpec] = {}
    for pair in criterion.pairs:
        reference = references[pair.student.name]
        if levels.setdefault(pair.teacher.name, reference) != reference:
            raise DfmsdError(
                f"basis: the losses teach the student's {levels[pair.teacher.name].name} and {reference.name} by the "
                f"same {pair.teacher.name} of the teacher, which can be rotated into one of them only; give all losses "
                "one pairing, or choose basis: own"
            )
    return PyramidBasis(teacher, levels, former=name == "former")


def _projects(criterion: AnyCriterion) -> bool:
    """Return whether convolutions map the student's channels where their widths do not require it."""
    return any(
        pair.student.channels == pair.teacher.channels and not isinstance(align.project, nn.Identity)
        for pair, align in zip(criterion.pairs, criterion.align, strict=True)
        if isinstance(align, Align)
    )


def _fits(criterion: AnyCriterion, references: dict[str, LevelSpec]) -> bool:
    """Return whether every taught level has a reference as wide as its teacher's."""
    widths = {name: level.channels for name, level in references.items()}
    return all(widths.get(pair.student.name) == pair.teacher.channels for pair in criterion.pairs)


def _taught_by(former: AnyCriterion) -> dict[str, LevelSpec]:
    """Return the student's levels that a former stage taught -> level that they were taught by."""
    return {pair.student.name: pair.teacher for pair in former.pairs}


def _kind(detector: Detector) -> tuple[type, type]:
    return type(detector), type(getattr(detector, "model", None))
