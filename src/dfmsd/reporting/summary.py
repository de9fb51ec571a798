"""Summary of a distillation in one or two sentences."""

from __future__ import annotations

from collections.abc import Sequence

from dfmsd.reporting.results import ModelRow, describe_gain


def summarize(student: ModelRow, baseline: ModelRow | None, teachers: Sequence[ModelRow]) -> str:
    """Compare a distilled student with its baseline and its best teacher.

    Args:
        student: the distilled student; the summary is empty if its AP is unknown.
        baseline: the same student trained without teachers.
        teachers: those whose AP is unknown are ignored.
    """
    after = student.ap()
    if after is None:
        return ""
    before = baseline.ap() if baseline else None
    gain = "" if before is None else f", {describe_gain(after - before, f'the baseline ({before:.1f})')}"
    return f"The distilled student reaches {after:.1f} AP{gain}.{_compare_teachers(student, teachers)}"


def _compare_teachers(student: ModelRow, teachers: Sequence[ModelRow]) -> str:
    known = [(ap, teacher) for teacher in teachers if (ap := teacher.ap()) is not None]
    if not known:
        return ""
    ap, best = max(known, key=lambda pair: pair[0])
    shares = []
    if student.parameters and best.parameters:
        shares.append(f"has {student.parameters / best.parameters:.0%} of its parameters")
    if student.latency and best.latency:
        shares.append(f"takes {student.latency / best.latency:.0%} of its time on this CPU")
    costs = f"; the student {' and '.join(shares)}" if shares else ""
    return f" The best teacher, {best.name}, reaches {ap:.1f}{costs}."
