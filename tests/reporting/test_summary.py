from __future__ import annotations

import pytest

from dfmsd.reporting.results import ModelRow
from dfmsd.reporting.summary import summarize

STUDENT = ModelRow("student", {"AP": 0.753}, parameters=200, latency=30.0)
BASELINE = ModelRow("baseline", {"AP": 0.709}, parameters=200)
WEAK = ModelRow("weak", {"AP": 0.5}, parameters=10)
STRONG = ModelRow("strong", {"AP": 0.809}, parameters=1000, latency=40.0)


def test_summary_has_gain_and_costs():
    assert summarize(STUDENT, BASELINE, [WEAK, STRONG]) == (
        "The distilled student reaches 75.3 AP, 4.4 above the baseline (70.9). The best teacher, strong, reaches 80.9; "
        "the student has 20% of its parameters and takes 75% of its time on this CPU."
    )


@pytest.mark.parametrize(
    ("student", "baseline", "teachers", "expected"),
    [
        (STUDENT, None, [], "The distilled student reaches 75.3 AP."),
        (STUDENT, ModelRow("baseline", {"AP": None}), [ModelRow("no head")], "The distilled student reaches 75.3 AP."),
        (ModelRow("student"), BASELINE, [STRONG], ""),
        (
            STUDENT,
            None,
            [ModelRow("t", {"AP": 0.9})],
            "The distilled student reaches 75.3 AP. The best teacher, t, reaches 90.0.",
        ),
    ],
)
def test_unknown_values_are_left_out(student, baseline, teachers, expected):
    assert summarize(student, baseline, teachers) == expected
