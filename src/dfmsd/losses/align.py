"""Pairing of pyramid levels, and layers that bring a pair to the same shape."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from dfmsd.errors import DfmsdError
from dfmsd.losses.matching import match_ranges
from dfmsd.types import LevelSpec
from dfmsd.utils.shapes import frame_of

Pairing = Literal["auto", "stride", "index"] | dict[str, str]
"""A rule, or student level -> teacher level."""
Resize = Literal["student", "teacher"]
MIN_PAIRS = 2
"""Pairs that two pyramids must share; one where either detector has a single level."""
STRIDE_TOLERANCE = 2**0.5
"""Factor by which the strides of a pair may differ: half an octave, so that no two powers of two match."""


class LevelPair(NamedTuple):
    """A student level and the teacher level that it imitates."""

    student: LevelSpec
    teacher: LevelSpec

    def stride(self, resize: Resize) -> float:
        """Return the stride of both levels after one of them is resized, see `Align`."""
        return (self.teacher if resize == "student" else self.student).stride


def format_levels(levels: Sequence[LevelSpec]) -> str:
    """Format levels as one line with the name, stride and channels of each."""
    return ", ".join(f"{level.name} /{level.stride:.3g} x{level.channels}" for level in levels) or "none"


def pair_levels(
    student: Sequence[LevelSpec], teacher: Sequence[LevelSpec], pairing: Pairing = "auto"
) -> tuple[LevelPair, ...]:
    """Pair the levels of two pyramids, finest first.

    Args:
        student: levels of the student.
        teacher: levels of the teacher.
        pairing: ``auto`` pairs the levels that are responsible for the same object sizes, in order and each at most
            once, see `match_ranges`; by stride if a level of either side states no sizes, or too few pairs
            overlap. ``stride`` pairs equal strides first: the first student level of a stride with the first teacher
            level of that stride, the second with the second (or with the last, if the teacher has fewer). It then pairs
            the remaining levels with the nearest stride within `STRIDE_TOLERANCE`, nearest first, each level once.
            ``index`` pairs the first level with the first and so on, whatever their strides (as PKD's released configs
            do). A mapping from student to teacher levels states the pairs.

    Raises:
        DfmsdError: fewer than two pairs, or none for a detector with a single level; or a mapping that names an unknown
            level, or a level twice.
    """
    if isinstance(pairing, Mapping):
        pairs = _pair_by_name(student, teacher, pairing)
    elif pairing == "index":
        pairs = tuple(LevelPair(s, t) for s, t in zip(student, teacher, strict=False))
    elif pairing == "auto":
        pairs = _pair_by_size(student, teacher)
    else:
        pairs = _pair_by_stride(student, teacher)
    required = _required_pairs(student, teacher)
    if len(pairs) < required:
        rule, remedy = "name", "more pairs in loss.pairing"
        if isinstance(pairing, str):
            rule = "object size or stride" if pairing == "auto" else str(pairing)
            remedy = "a detector with common strides or loss.pairing: index"
        raise DfmsdError(
            f"student and teacher share {len(pairs)} pyramid level(s) by {rule}, at least {required} must be shared: "
            f"student has {format_levels(student)}; teacher has {format_levels(teacher)}; "
            f"choose {remedy}"
        )
    return pairs


def _required_pairs(student: Sequence[LevelSpec], teacher: Sequence[LevelSpec]) -> int:
    return min(MIN_PAIRS, max(1, min(len(student), len(teacher))))


def check_pairing(pairing: Pairing) -> None:
    """Refuse a mapping that is wrong whatever the pyramids.

    Raises:
        DfmsdError: a key or value is not a name, or a teacher level occurs twice.
    """
    if isinstance(pairing, str):
        return
    for name in (*pairing, *pairing.values()):
        if not isinstance(name, str):
            raise DfmsdError(f"loss.pairing: {name!r} is not the name of a level; write {{p3: p2, p4: p3}}")
    twice = [name for name, count in Counter(pairing.values()).items() if count > 1]
    if twice:
        raise DfmsdError(
            f"loss.pairing: teacher level {twice[0]} occurs twice; pair it with one student level, and leave out the "
            "other"
        )


def _pair_by_name(
    student: Sequence[LevelSpec], teacher: Sequence[LevelSpec], pairing: Mapping[str, str]
) -> tuple[LevelPair, ...]:
    check_pairing(dict(pairing))
    by_name = {level.name: level for level in teacher}
    for who, names, levels in (("student", pairing, student), ("teacher", pairing.values(), teacher)):
        known = [level.name for level in levels]
        for name in names:
            if name not in known:
                raise DfmsdError(f"loss.pairing: the {who} has no level {name}; its levels are {', '.join(known)}")
    return tuple(LevelPair(level, by_name[pairing[level.name]]) for level in student if level.name in pairing)


def _pair_by_size(student: Sequence[LevelSpec], teacher: Sequence[LevelSpec]) -> tuple[LevelPair, ...]:
    student_sizes, teacher_sizes = ([level.sizes for level in levels if level.sizes] for levels in (student, teacher))
    if len(student_sizes) < len(student) or len(teacher_sizes) < len(teacher):
        return _pair_by_stride(student, teacher)
    matches = match_ranges(student_sizes, teacher_sizes)
    if len(matches) < _required_pairs(student, teacher):
        return _pair_by_stride(student, teacher)
    return tuple(LevelPair(student[i], teacher[j]) for i, j in matches)


def _pair_by_stride(student: Sequence[LevelSpec], teacher: Sequence[LevelSpec]) -> tuple[LevelPair, ...]:
    by_stride: defaultdict[float, list[LevelSpec]] = defaultdict(list)
    for level in teacher:
        by_stride[level.stride].append(level)
    pairs: dict[int, LevelSpec] = {}  # index of the student's level -> level of the teacher
    occurrences: Counter[float] = Counter()
    for index, level in enumerate(student):
        if same := by_stride.get(level.stride):
            pairs[index] = same[min(occurrences[level.stride], len(same) - 1)]
            occurrences[level.stride] += 1
    strides = {level.stride for level in student}
    candidates = [
        (_stride_ratio(level, other), index, place)
        for index, level in enumerate(student)
        for place, other in enumerate(teacher)
        if index not in pairs and other.stride not in strides
    ]
    used: set[int] = set()
    for ratio, index, place in sorted(candidates):
        if ratio <= STRIDE_TOLERANCE and index not in pairs and place not in used:
            pairs[index] = teacher[place]
            used.add(place)
    return tuple(LevelPair(level, pairs[index]) for index, level in enumerate(student) if index in pairs)


def _stride_ratio(first: LevelSpec, second: LevelSpec) -> float:
    low, high = sorted((first.stride, second.stride))
    return high / low


class Align(nn.Module):
    """Bring the two levels of a pair to the same shape: a 1x1 convolution of the student, then a resize of one level.

    The convolution is the identity when the channels agree, the resize when the sizes do. The convolution is dropped
    after training.

    Args:
        pair: the two levels.
        project: use the convolution even if the channels agree. Channel 7 of one detector has nothing to do with
            channel 7 of another: without the convolution the student rearranges its own channels to match the
            teacher's, and again in the next stage. None leaves it out even if they differ.
        resize: which map is resized to the other's size: the ``student``'s (bilinear), or the ``teacher``'s (averaged
            over the area of a cell if it is finer). A student's map of stride 8 cannot express differences within a
            cell, however it is enlarged; a teacher's map of stride 4 then makes the loss four times as expensive for
            no benefit.
    """

    def __init__(self, pair: LevelPair, *, project: bool | None = False, resize: Resize = "student") -> None:
        super().__init__()
        self.resize: Resize = resize
        student, teacher = pair.student.channels, pair.teacher.channels
        identity = project is None or (student == teacher and not project)
        self.project: nn.Module = nn.Identity() if identity else nn.Conv2d(student, teacher, 1)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Align ``N x C_S x H' x W'`` with ``N x C_T x H x W``.

        Returns:
            Student and teacher, each ``N x C_T`` x ``H x W``, or with ``resize="teacher"`` x ``H' x W'``.
        """
        projected: Tensor = self.project(student)
        if self.resize == "student" and projected.shape[-2:] != teacher.shape[-2:]:
            projected = F.interpolate(projected, size=teacher.shape[-2:], mode="bilinear", align_corners=False)
        return projected, resize_teacher(teacher, student, self.resize)


def resize_teacher(teacher: Tensor, student: Tensor, resize: Resize) -> Tensor:
    """Resize a teacher's map ``N x C x H x W`` to the size of the student's if ``resize`` is ``teacher``."""
    if resize == "student" or teacher.shape[-2:] == student.shape[-2:]:
        return teacher
    if teacher.shape[-2] > student.shape[-2]:
        return F.adaptive_avg_pool2d(teacher, frame_of(student))
    return F.interpolate(teacher, size=student.shape[-2:], mode="bilinear", align_corners=False)
