"""Matching and listing of class names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

SYNONYMS = (
    ("airplane", "aeroplane"),
    ("cell phone", "cellular telephone", "mobile phone"),
    ("couch", "sofa"),
    ("donut", "doughnut"),
    ("hair drier", "hair dryer"),
    ("microwave", "microwave oven"),
    ("motorcycle", "motorbike"),
    ("refrigerator", "fridge"),
    ("remote", "remote control"),
    ("skis", "ski"),
    ("tv", "tv monitor", "television", "television set"),
)
"""Names of one class in COCO, Pascal VOC, LVIS and Objects365, and in detectors trained on them."""

LISTED = 20
"""Classes that a line names."""


def _plain(name: str) -> str:
    """Return a name without case, blanks, underscores and hyphens."""
    return re.sub(r"[\s_-]+", "", name.casefold()) or name


_MEANING = {_plain(name): _plain(names[0]) for names in SYNONYMS for name in names}


def _meaning(name: str) -> str:
    return _MEANING.get(_plain(name), _plain(name))


def common_classes(detector: Sequence[str], dataset: Sequence[str]) -> dict[int, int]:
    """Match the class names of a detector to those of a data set.

    Names match if they are equal, or else if they differ only in case, or else in blanks, underscores and hyphens, or
    else if they are `SYNONYMS`. A class of the data set that has found its equal is not matched again.

    Args:
        detector: Class names of the detector.
        dataset: Class names of the data set.

    Returns:
        Label in ``detector`` -> label in ``dataset``, for the classes that both have.
    """
    matches: dict[int, int] = {}
    forms: tuple[Callable[[str], str], ...] = (str, str.casefold, _plain, _meaning)
    for form in forms:
        taken = set(matches.values())
        free = {label: form(name) for label, name in enumerate(dataset) if label not in taken}
        counts = Counter(free.values())
        place = {name: label for label, name in free.items() if counts[name] == 1}
        unmatched = ((label, form(name)) for label, name in enumerate(detector) if label not in matches)
        matches |= {label: place[name] for label, name in unmatched if name in place}
    return dict(sorted(matches.items()))


def listed(names: Sequence[str]) -> str:
    """Return the first names of a list."""
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
