from __future__ import annotations

import pytest

from dfmsd.tuning.contest import Candidate, choose_winner
from dfmsd.tuning.outcome import summarize

BASELINE = Candidate("baseline", None, {0: 0.20, 1: 0.21})
CONFIG = Candidate("config", {}, {0: 0.30, 1: 0.32})


def test_gain_above_the_difference_of_seeds() -> None:
    trial = Candidate("trial 7", {}, {0: 0.36, 1: 0.34})
    text = summarize([trial, CONFIG, BASELINE], trial, {"best": 0.41, "config": None, "baseline": 0.3})
    assert text == (
        "The best configuration is trial 7, with 35.0 AP on the held-out images. Its difference to the config is +4.0 "
        "(+6.0 with seed 0, +2.0 with seed 1), which is more than the 2.0 that the two seeds of a configuration differ "
        "by at most. Its difference to the same without a teacher is +14.5 (+16.0 with seed 0, +13.0 with seed 1), "
        "which is more than the 2.0 that the two seeds of a configuration differ by at most. On val, after training on "
        "all training images: 41.0 AP, and unknown for the config and 30.0 for the same without a teacher."
    )


def test_gain_within_the_difference_of_seeds() -> None:
    trial = Candidate("trial 7", {}, {0: 0.36, 1: 0.30})
    text = summarize([trial, CONFIG, BASELINE], trial, {"best": 0.41, "baseline": 0.3})
    assert "to the config is +2.0 (+6.0 with seed 0, -2.0 with seed 1), which is not more than the 6.0" in text
    assert text.endswith("41.0 AP, and 30.0 for the same without a teacher.")


@pytest.mark.parametrize(("second", "winner"), [(0.25, "config"), (0.2, "config"), (0.3, "trial 7")])
def test_winner_is_best_with_both_seeds(second: float, winner: str) -> None:
    config = Candidate("config", {}, {0: 0.25, 1: 0.375})
    trial = Candidate("trial 7", {}, {0: 0.375, 1: second})
    assert choose_winner([trial, config]).name == winner
