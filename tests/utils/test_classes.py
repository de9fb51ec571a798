"""Examples of matched class names."""

from __future__ import annotations

import pytest

from dfmsd.utils.classes import SYNONYMS, common_classes


@pytest.mark.parametrize(
    ("detector", "dataset", "expected"),
    [
        (["cat", "dog"], ["dog", "cat"], {0: 1, 1: 0}),
        (["cat", "dog", "eel"], ["dog"], {1: 0}),
        (["Cat", "DOG"], ["dog", "cat"], {0: 1, 1: 0}),
        (["cat", "Cat"], ["CAT", "Cat"], {0: 0, 1: 1}),  # equal names first, then those that are left
        (["cat", "Cat"], ["Cat"], {1: 0}),
        (["cat"], ["dog"], {}),
        (
            ["potted plant", "dining-table", "Wine_Glass"],
            ["pottedplant", "diningtable", "wine glass"],
            {0: 0, 1: 1, 2: 2},
        ),
        (
            ["motorbike", "aeroplane", "sofa", "tvmonitor"],
            ["tv", "couch", "airplane", "motorcycle"],
            {0: 3, 1: 2, 2: 1, 3: 0},
        ),
        (["television", "TV"], ["tv"], {1: 0}),  # a synonym only where no name is nearer
        (["sofa", "couch"], ["couch"], {1: 0}),
        (["hot dog"], ["hotdog", "hot_dog"], {}),  # which one is unknown
        (["-"], ["_"], {}),
        ([], ["dog"], {}),
    ],
)
def test_class_names_are_matched(detector: list[str], dataset: list[str], expected: dict[int, int]) -> None:
    assert common_classes(detector, dataset) == expected


def test_a_published_coco_detector_knows_the_classes_of_coco() -> None:
    published = ["person", "motorbike", "aeroplane", "sofa", "pottedplant", "diningtable", "tvmonitor", "hair drier"]
    coco = ["person", "motorcycle", "airplane", "couch", "potted plant", "dining table", "tv", "hair drier"]
    assert common_classes(published, coco) == {label: label for label in range(8)}


def test_no_name_stands_for_two_classes() -> None:
    names = [name for names in SYNONYMS for name in names]
    assert len({name.replace(" ", "") for name in names}) == len(names)
