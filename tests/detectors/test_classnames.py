"""Class names of trained detectors in the data set's spelling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dfmsd.detectors import DetectorConfig, build_detector, save_detector
from dfmsd.detectors.classnames import check_names, check_plain, with_names
from dfmsd.errors import DfmsdError

CONFIG = DetectorConfig("fcos", "test_efficientnet", fpn_channels=16, head_convs=1)


def test_a_renamed_detector_shares_its_weights_and_leaves_the_given_one_alone() -> None:
    detector = build_detector(CONFIG, ("person", "tvmonitor"))
    renamed = with_names(detector, {"tvmonitor": "tv"})
    assert detector.class_names == ("person", "tvmonitor")
    assert renamed.class_names == ("person", "tv")
    assert all(a is b for a, b in zip(detector.parameters(), renamed.parameters(), strict=True))
    images = torch.rand(1, 3, 64, 64)
    both = [each.eval().detect(images, [(64, 64)]) for each in (detector, renamed)]
    assert all(torch.equal(a, b) for a, b in zip(both[0][0].values(), both[1][0].values(), strict=True))
    assert with_names(renamed, {"tvmonitor": "tv"}).class_names == ("person", "tv")
    assert with_names(detector, None) is detector


def test_names_that_change_places_do_not_change_back() -> None:
    names = {"front": "back", "back": "front"}
    renamed = with_names(build_detector(CONFIG, ("front", "back")), names)
    assert with_names(renamed, names).class_names == ("back", "front")


def test_several_classes_may_become_one() -> None:
    detector = build_detector(CONFIG, ("car", "truck", "person"))
    assert with_names(detector, {"car": "vehicle", "truck": "vehicle"}).class_names == ("vehicle", "vehicle", "person")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"tvmonitor": "telly"}, r"^teacher_classes: the data have no class 'telly'; they have person, screen$"),
        ({"tv": "screen"}, r"^teacher_classes: no teacher has a class 'tv'; their classes are person, tvmonitor; dog$"),
    ],
)
def test_names_that_do_not_exist_are_refused_with_those_that_do(names: dict[str, str], message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        check_names(names, ("person", "screen"), [("person", "tvmonitor"), (), ("dog",)])


def test_names_of_one_of_the_teachers_are_enough() -> None:
    known = [("person", "tvmonitor"), ("dog",)]
    check_names({"tvmonitor": "screen", "dog": "person"}, ("person", "screen"), known)
    check_names({"tvmonitor": "screen"}, ("person", "screen"), [("person", "screen")])  # renamed before
    check_names({"unknown": "screen"}, ("person", "screen"), None)
    check_names(None, ("person",), known)


@pytest.mark.parametrize("names", [{"tv": False}, {1: "tv"}, {"": "tv"}, {"tv": ""}])
def test_names_that_are_no_text_are_refused(names: Any) -> None:
    with pytest.raises(DfmsdError, match=r"^teacher_classes: .* are not two class names.*in quotes"):
        check_plain(names)


def test_rows_of_a_renamed_class_start_a_student(tmp_path: Path) -> None:
    trained = build_detector(CONFIG, ("tvmonitor", "person"))
    save_detector(trained, tmp_path / "trained")
    start = DetectorConfig(init=str(tmp_path / "trained"))
    student = build_detector(start, ("person", "screen"), {"tvmonitor": "screen"})
    assert student.class_names == ("person", "screen")
    mine, theirs = (each.model.head.classification_head.cls_logits.weight for each in (student, trained))
    assert torch.equal(mine, theirs.flip(0))
