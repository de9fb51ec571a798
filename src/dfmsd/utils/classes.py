"""Which classes of two lists are the same."""

from __future__ import annotations

from collections.abc import Sequence


def common_classes(known: Sequence[str], wanted: Sequence[str]) -> dict[int, int]:
    """Map places in one list of class names to places in another, by name.

    Equal names belong together; of the others, those that differ in nothing but case.

    Args:
        known: of a detector.
        wanted: of a data set.

    Returns:
        Place in ``known`` -> place in ``wanted``, without the classes that only one of the two has.
    """
    equal = {name: place for place, name in enumerate(wanted)}
    alike = {name.casefold(): place for place, name in enumerate(wanted) if name not in known}
    found = {label: equal.get(name, alike.get(name.casefold())) for label, name in enumerate(known)}
    return {label: place for label, place in found.items() if place is not None}
