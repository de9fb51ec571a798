from __future__ import annotations

import pytest

from dfmsd.tuning.config import first_rung, rungs
from dfmsd.tuning.search import FOLLOWING, Budget
from dfmsd.utils.durations import HOUR


@pytest.mark.parametrize(
    ("epochs", "expected"), [(1, []), (2, [1]), (3, [1, 2]), (8, [2, 4]), (9, [2, 4]), (12, [3, 6]), (42, [10, 20])]
)
def test_trials_are_compared_after_a_quarter_and_half_of_the_epochs(epochs: int, expected: list[int]) -> None:
    assert rungs(epochs) == expected
    assert all(epoch % first_rung(epochs) == 0 for epoch in expected)  # they are evaluated there


def test_hours_hold_what_follows_the_search() -> None:
    now = [0.0]
    budget = Budget(None, 2.0, 2, clock=lambda: now[0])
    assert budget.seconds_left(0) is None
    assert not budget.is_over()
    budget.note(0.2 * HOUR, whole=True)
    budget.note(0.05 * HOUR, whole=False)
    now[0] = (2.0 - 0.2 - 0.2 * FOLLOWING / 2 - 0.01) * HOUR
    assert not budget.is_over()
    now[0] += 0.02 * HOUR
    assert budget.is_over()
    assert budget.seconds_left(2) == pytest.approx(2.0 * HOUR - now[0])


def test_hours_hold_what_follows_the_search_from_its_first_trial_on() -> None:
    """A search that is continued knows how long its trials have taken."""
    budget = Budget(None, 2.0, 1, clock=lambda: 0.0)
    budget.recall([0.05 * HOUR, 0.21 * HOUR])
    assert budget.is_over()  # ten whole runs are 2.1 hours
    budget = Budget(None, 2.0, 1, clock=lambda: 0.0)
    budget.recall([0.05 * HOUR, 0.19 * HOUR])
    assert not budget.is_over()


def test_the_time_left_follows_from_the_trials_so_far() -> None:
    budget = Budget(10, None, 1, clock=lambda: 0.0)
    budget.note(1.0 * HOUR, whole=True)
    budget.note(0.5 * HOUR, whole=False)
    assert budget.seconds_left(2) == pytest.approx((8 * 0.75 + FOLLOWING * 1.0) * HOUR)
    assert not budget.is_over()
