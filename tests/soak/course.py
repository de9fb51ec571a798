"""Samples of a long run's memory, files and logs over time, and whether they stay constant."""

from __future__ import annotations

import os
import random
import statistics
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

GROWTH = 0.01
"""Relative growth of memory in the second half that is not considered a leak."""
PAIRS = 20_000
"""Maximum number of pairs of samples for the median slope."""


class Sample(NamedTuple):
    """Measurements at one moment of a run."""

    step: int
    memory: int
    """Resident memory of the process in bytes."""
    handles: int
    """Open files, sockets and pipes."""
    logs: int
    """Total size of the log files in bytes."""
    folder: int
    """Number of files in the run folder."""


def look(process: int, run: Path) -> Sample | None:
    """Take a sample; None if the process has ended or has not taken a step yet."""
    try:
        status = Path(f"/proc/{process}/statm").read_text().split()
        handles = len(os.listdir(f"/proc/{process}/fd"))
        log = run / "log.csv"
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            last = file.read().splitlines()[-1].split(b",")[0]
        files = [path for path in run.rglob("*") if path.is_file()]
        logs = sum(path.stat().st_size for path in files if path.suffix == ".csv" or "tfevents" in path.name)
    except (FileNotFoundError, IndexError):
        return None
    if not last.isdigit():
        return None
    return Sample(int(last) + 1, int(status[1]) * os.sysconf("SC_PAGE_SIZE"), handles, logs, len(files))


@dataclass(frozen=True)
class Course:
    """Summary of the second half of the samples.

    Attributes:
        steps: number of steps.
        memory: median in bytes.
        growth: median slope of memory between two samples (Theil-Sen) in bytes per step.
        noise: median distance from that line in bytes.
        handles: median number of open files in each half of it.
        bytes_a_step: growth of the logs in the first and in the second half of all samples.
        files: number of files in the run folder at the middle and at the end.
    """

    steps: int
    memory: int
    growth: float
    noise: float
    handles: tuple[float, float]
    bytes_a_step: tuple[float, float]
    files: tuple[int, int]

    def faults(self) -> list[str]:
        """Return the measurements that do not stay constant."""
        gained = self.growth * self.steps
        found = []
        if gained > max(GROWTH * self.memory, 2 * self.noise):
            found.append(f"memory grows by {self.growth:.0f} bytes a step: {gained / 2**20:.1f} MiB in {self.steps}")
        if self.handles[1] > self.handles[0]:
            found.append(f"open files grow from {self.handles[0]:g} to {self.handles[1]:g}")
        if self.bytes_a_step[1] > 1.1 * self.bytes_a_step[0]:
            found.append(f"logs grow from {self.bytes_a_step[0]:.0f} to {self.bytes_a_step[1]:.0f} bytes a step")
        if self.files[1] > self.files[0]:
            found.append(f"the run folder grows from {self.files[0]} to {self.files[1]} files")
        return found


def judge(samples: list[Sample]) -> Course:
    """Summarize a run; of the first half, in which caches fill up, only the growth of the logs counts."""
    middle = len(samples) // 2
    half = samples[middle:]
    pairs = list(combinations(half, 2))
    if len(pairs) > PAIRS:
        pairs = random.Random(0).sample(pairs, PAIRS)
    growth = statistics.median((b.memory - a.memory) / (b.step - a.step) for a, b in pairs if b.step > a.step)
    level = statistics.median(sample.memory - growth * sample.step for sample in half)
    early, late = half[: len(half) // 2], half[len(half) // 2 :]
    return Course(
        steps=half[-1].step - half[0].step,
        memory=int(statistics.median(sample.memory for sample in half)),
        growth=growth,
        noise=statistics.median(abs(sample.memory - growth * sample.step - level) for sample in half),
        handles=(_handles(early), _handles(late)),
        bytes_a_step=(_rate(samples[: middle + 1]), _rate(half)),
        files=(half[0].folder, half[-1].folder),
    )


def _handles(samples: list[Sample]) -> float:
    return statistics.median(sample.handles for sample in samples)


def _rate(samples: list[Sample]) -> float:
    return (samples[-1].logs - samples[0].logs) / max(1, samples[-1].step - samples[0].step)
