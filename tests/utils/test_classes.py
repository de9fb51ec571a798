"""Examples of matched class names."""

from __future__ import annotations

import pytest

from dfmsd.utils.classes import common_classes


@pytest.mark.parametrize(
    ("detector", "dataset", "expected"),
    [
        (["cat", "dog"], ["dog", "cat"], {0: 1, 1: 0}),
        (["cat", "dog", "eel"], ["dog"], {1: 0}),
        (["Cat", "DOG"], ["dog", "cat"], {0: 1, 1: 0}),
        (["cat", "Cat"], ["CAT", "Cat"], {0: 0, 1: 1}),  # equal names first, then those that are left
        (["cat", "Cat"], ["Cat"], {1: 0}),
        (["cat"], ["dog"], {}),
        ([], ["dog"], {}),
    ],
)
def test_class_names_are_matched(detector: list[str], dataset: list[str], expected: dict[int, int]) -> None:
    assert common_classes(detector, dataset) == expected
