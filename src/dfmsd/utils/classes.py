"""Matching of class names."""

from __future__ import annotations

from collections.abc import Sequence


def common_classes(detector: Sequence[str], dataset: Sequence[str]) -> dict[int, int]:
    """Match the class names of a detector to those of a data set.

    Names match if they are equal, or else if they differ in case only.

    Args:
        detector: Class names of the detector.
        dataset: Class names of the data set.

    Returns:
        Label in ``detector`` -> label in ``dataset``, for the classes that both have.
    """
    equal = {name: label for label, name in enumerate(dataset)}
    similar = {name.casefold(): label for label, name in enumerate(dataset) if name not in detector}
    matches = {label: equal.get(name, similar.get(name.casefold())) for label, name in enumerate(detector)}
    return {label: match for label, match in matches.items() if match is not None}
