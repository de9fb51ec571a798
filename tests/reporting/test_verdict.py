from __future__ import annotations

import pytest

from dfmsd.reporting.scores import Contender
from dfmsd.reporting.verdict import verdict

STUDENT = Contender("student", {"AP": 0.753}, parameters=200, latency=30.0)
BASELINE = Contender("baseline", {"AP": 0.709}, parameters=200)
WEAK = Contender("weak", {"AP": 0.5}, parameters=10)
STRONG = Contender("strong", {"AP": 0.809}, parameters=1000, latency=40.0)


def test_gain_and_size_are_told_in_a_sentence_each():
    assert verdict(STUDENT, BASELINE, [WEAK, STRONG]) == (
        "The distilled student has 75.3 AP, +4.4 against its baseline's 70.9. The best teacher, strong, has 80.9; the "
        "student has 20% of its parameters and takes 75% of its time on this CPU."
    )


@pytest.mark.parametrize(
    ("student", "baseline", "teachers", "told"),
    [
        (STUDENT, None, [], "The distilled student has 75.3 AP."),
        (STUDENT, Contender("baseline", {"AP": None}), [Contender("no head")], "The distilled student has 75.3 AP."),
        (Contender("student"), BASELINE, [STRONG], ""),
        (
            STUDENT,
            None,
            [Contender("t", {"AP": 0.9})],
            "The distilled student has 75.3 AP. The best teacher, t, has 90.0.",
        ),
    ],
)
def test_what_is_not_known_is_left_out(student, baseline, teachers, told):
    assert verdict(student, baseline, teachers) == told
