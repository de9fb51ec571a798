"""What a distillation did, in one or two sentences: the first thing that a page says."""

from __future__ import annotations

from collections.abc import Sequence

from dfmsd.reporting.scores import Contender


def verdict(student: Contender, baseline: Contender | None, teachers: Sequence[Contender]) -> str:
    """Compare a distilled student with its baseline, and with the best of its teachers.

    Args:
        student: whose AP is known; nothing is said otherwise.
        baseline: the same student without teachers.
        teachers: those whose AP is known count.
    """
    after = student.ap()
    if after is None:
        return ""
    before = baseline.ap() if baseline else None
    gain = "" if before is None else f", {after - before:+.1f} against its baseline's {before:.1f}"
    return f"The distilled student has {after:.1f} AP{gain}.{_beside(student, teachers)}"


def _beside(student: Contender, teachers: Sequence[Contender]) -> str:
    known = [(ap, teacher) for teacher in teachers if (ap := teacher.ap()) is not None]
    if not known:
        return ""
    ap, best = max(known, key=lambda pair: pair[0])
    shares = []
    if student.parameters and best.parameters:
        shares.append(f"has {student.parameters / best.parameters:.0%} of its parameters")
    if student.latency and best.latency:
        shares.append(f"takes {student.latency / best.latency:.0%} of its time on this CPU")
    told = f"; the student {' and '.join(shares)}" if shares else ""
    return f" The best teacher, {best.name}, has {ap:.1f}{told}."
