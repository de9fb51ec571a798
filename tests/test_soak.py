"""The soak test finds growth, and finds none in a short run."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from tests.soak.__main__ import soak
from tests.soak.course import Sample, judge

MIB = 2**20


def course(leak: float = 0.0, **changes: Callable[[int], int]) -> list[str]:
    """Faults of 200 samples at every 50 steps: memory with 3 MiB of noise around 900, after a start at 500."""
    chance = random.Random(1)
    samples = [
        Sample(
            step=50 * number,
            memory=int((900 if number > 40 else 500) * MIB + leak * 50 * number + chance.gauss(0, 3 * MIB)),
            handles=30 + number % 3,
            logs=400 * 50 * number,
            folder=14,
        )
        for number in range(1, 201)
    ]
    changed = [
        sample._replace(**{key: value(number) for key, value in changes.items()})
        for number, sample in enumerate(samples)
    ]
    return judge(changed).faults()


def test_constant_measurements_have_no_fault() -> None:
    assert course() == []


def test_a_leak_is_found_in_spite_of_the_noise() -> None:
    assert course(leak=1000.0) == []  # 5 MiB in the second half: within 1 %
    (fault,) = course(leak=4000.0)
    assert fault.startswith("memory grows by 4")


def test_open_files_logs_and_folders_that_grow_are_found() -> None:
    assert course(handles=lambda n: 30 + n // 10)[0].startswith("open files grow")
    assert course(logs=lambda n: n * n)[0].startswith("logs grow")
    assert course(folder=lambda n: 14 + n // 150)[0].startswith("the run folder grows")


@pytest.mark.slow
def test_a_short_run_does_not_leak() -> None:
    found, samples = soak(60.0, interval=0.5)
    assert samples[-1].step > 50
    # too short for the memory: caches fill for some hundreds of steps
    assert [fault for fault in found.faults() if not fault.startswith("memory")] == []
