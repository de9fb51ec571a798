"""The matrix of teachers and students: a part of it is tried here, and its page says what was tried."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from tests.helpers import support
from tests.helpers.support import COMBINATIONS, OWN_ARCHS, STUDENTS, TEACHERS, TORCHVISION, Student, Workshop, attempt
from tests.helpers.support_docs import DOCS, Support, render
from tests.helpers.tiny_transformers import NEEDED
from torch import nn

from dfmsd.detectors import Detector, ModuleDetector, torchvision_archs
from dfmsd.detectors.huggingface.families import FAMILIES

FEW = [
    ("faster_rcnn", "gfl"),
    ("ssdlite", "retinanet"),
    ("nn.Module", "faster_rcnn"),
    ("timm: pyramid", "ssdlite"),
    pytest.param("hf: rt_detr", "hf: d_fine", marks=NEEDED),
]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def found() -> Support:
    return json.loads((DOCS / "support.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("teacher", "student"), FEW)
def test_a_teacher_teaches_a_student_of_another_family(teacher: str, student: str, workshop: Workshop) -> None:
    row = attempt(teacher, student, workshop)
    assert row["note"] == ""
    assert row["passed"]
    assert len(row["levels"]) >= 2


@pytest.mark.slow
@pytest.mark.transformers
def test_every_combination_is_as_the_page_says(found: Support, workshop: Workshop) -> None:
    for row in found["rows"]:
        assert attempt(row["teacher"], row["student"], workshop) == row


# What a combination can fail by.


def one_level(_: Path) -> ModuleDetector:
    return ModuleDetector(nn.Sequential(nn.Conv2d(3, 4, 4, 4)), ("0",), mean=(0.5,) * 3, std=(0.5,) * 3)


def test_a_refusal_is_told_in_its_own_words(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TEACHERS, "one level", one_level)
    row = attempt("one level", "fcos", workshop)
    assert (row["passed"], row["refused"], row["levels"]) == (False, True, [])
    assert "stage 1, teacher one level: student and teacher share 0 pyramid level(s) by object size" in row["note"]


def changed(student: str, change: Callable[[Detector], object]) -> Student:
    def build(folder: Path) -> Detector:
        detector = STUDENTS[student].build(folder)
        change(detector)
        return detector

    return STUDENTS[student]._replace(build=build)


def idle_layer(detector: Detector) -> None:
    detector.model.head.idle = nn.Linear(2, 2)


def infinite(detector: Detector) -> None:
    nn.init.constant_(detector.model.head.regression_head.bbox_reg.bias, float("inf"))


def deaf(detector: Detector) -> None:
    detector.model.score_thresh = 2.0  # which is in no file


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (idle_layer, "no gradient reaches head.idle.weight, head.idle.bias"),
        (infinite, "the loss of step 1 is (nan|inf)"),
        (deaf, "boxes differ after loading"),
    ],
)
def test_a_student_that_does_not_learn_does_not_pass(
    change: Callable[[Detector], object], note: str, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STUDENTS, change.__name__, changed("fcos", change))
    row = attempt("fcos", change.__name__, workshop)
    assert (row["passed"], row["refused"]) == (False, False)
    assert re.search(note, row["note"])


def test_a_file_that_holds_another_student_does_not_pass(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        STUDENTS, "broken", STUDENTS["nn.Module"]._replace(load=lambda folder: support.module(folder).eval())
    )
    row = attempt("fcos", "broken", workshop)
    assert not row["passed"]
    assert row["note"] == "boxes differ after loading"


def test_two_students_that_find_nothing_do_not_pass(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.long)}
    monkeypatch.setattr(support, "decode", lambda _model, pixels, _sizes: [nothing] * len(pixels))
    monkeypatch.setitem(STUDENTS, "silent", STUDENTS["nn.Module"])
    row = attempt("fcos", "silent", workshop)
    assert row["note"] == "nothing is detected, so that nothing can be compared"


def test_frozen_parts_are_named_and_expected_to_learn_nothing(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def freeze(detector: Detector) -> None:
        detector.model.backbone.body.conv_stem.requires_grad_(False)
        detector.model.head.regression_head.bbox_reg.bias.requires_grad_(False)

    monkeypatch.setitem(STUDENTS, "frozen", changed("fcos", freeze))
    row = attempt("fcos", "frozen", workshop)
    assert row["passed"]
    assert row["frozen"] == ["backbone.body.conv_stem", "head.regression_head.bbox_reg.bias"]


# The page.


def test_the_page_is_what_the_json_says(found: Support) -> None:
    assert (DOCS / "support.md").read_text(encoding="utf-8") == render(found)


def test_every_registered_family_was_tried(found: Support) -> None:
    pairs = [(row["teacher"], row["student"]) for row in found["rows"]]
    assert pairs == COMBINATIONS
    registered = {*OWN_ARCHS, *TORCHVISION.values()}
    teachers = {*registered, *(f"hf: {name}" for name in FAMILIES)}
    students = {*registered, *(f"hf: {name}" for name, family in FAMILIES.items() if family.trainable)}
    assert teachers <= {teacher for teacher, _ in pairs}
    assert students <= {student for _, student in pairs}
    assert all(name.startswith(tuple(TORCHVISION)) for name in torchvision_archs())


def test_what_is_promised_works(found: Support) -> None:
    foreign = ("mask_rcnn", "ssd", "hf: rt_detr_v2", "hf: d_fine", "hf: deformable_detr", "timm: pyramid", "nn.Module")
    single = ("hf: detr", "hf: rf_detr", "hf: yolos")
    promised = {
        *product(
            (*OWN_ARCHS, *foreign, "hf: deimv2"),
            (*OWN_ARCHS, "hf: rt_detr", "hf: d_fine", "hf: deimv2", "hf: deformable_detr"),
        ),
        *product(single, OWN_ARCHS),
        *product((*OWN_ARCHS, "hf: yolos"), ("hf: rf_detr",)),
    }
    assert promised <= {(row["teacher"], row["student"]) for row in found["rows"] if row["passed"]}
    assert all(row["passed"] or row["refused"] for row in found["rows"])
