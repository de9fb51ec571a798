"""Soak test: a long run of a tiny distillation whose memory, open files and log growth must stay constant.

python -m tests.soak --seconds 7200
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from tests.helpers.fixtures import TINY_CATEGORIES, write_tiny
from tests.soak.course import Course, Sample, judge, look

from dfmsd.detectors import DetectorConfig, build_detector, save_detector
from dfmsd.utils.files import write_json

OUT = Path(__file__).resolve().parents[2] / "build" / "soak.json"
INTERVAL = 2.0
"""Seconds between two samples."""
START_SECONDS = 600.0
"""Time limit for the first step, which starts the clock of the soak test."""


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start an endless run with flips, random masks, balance, evaluations and checkpoints."""
    write_tiny(folder / "data")
    torch.manual_seed(0)
    tiny = DetectorConfig("fcos", "mobilenetv3_small_050", fpn_channels=16, head_convs=1)
    save_detector(build_detector(tiny, list(TINY_CATEGORIES.values())), folder / "teacher")
    config = {
        "data": {"root": str(folder / "data"), "image_size": 64, "batch_size": 2, "workers": 1},
        "student": asdict(tiny),
        "stages": [{"teacher": str(folder / "teacher"), "epochs": 1_000_000}],
        "loss": {"name": "dfmsd", "direction": "random"},
        "balance": 0.5,
        "eval_every": 5,
        "checkpoint_every": 50,
        "out": str(folder / "run"),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [
        sys.executable,
        "-m",
        "dfmsd",
        "distill",
        "--config",
        str(folder / "config.yaml"),
        "--allow-weak-teacher",
    ]
    with (folder / "said").open("wb") as said:
        return subprocess.Popen(command, stdout=said, stderr=said, env={**os.environ, "OMP_NUM_THREADS": "1"})


def soak(seconds: float, interval: float = INTERVAL) -> tuple[Course, list[Sample]]:
    """Watch a run for a while.

    Raises:
        RuntimeError: the run ended, or took too few steps.
    """
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        process = start(folder)
        try:
            end = time.monotonic() + START_SECONDS
            while time.monotonic() < end:
                time.sleep(interval)
                if process.poll() is not None:
                    raise RuntimeError((folder / "said").read_text())
                sample = look(process.pid, folder / "run")
                if sample is not None and (not samples or sample.step > samples[-1].step):
                    end = end if samples else time.monotonic() + seconds
                    samples.append(sample)
        finally:
            process.kill()
            process.wait()
    if len(samples) < 8:
        raise RuntimeError(f"{len(samples)} samples in {seconds:.0f} s are too few; give more time")
    return judge(samples), samples


def main() -> int:
    """Run, print the summary and write it as JSON; return status 1 if something grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=7200.0)
    seconds = parser.parse_args().seconds
    OUT.parent.mkdir(exist_ok=True)  # fail now rather than after hours
    course, samples = soak(seconds)
    print(f"{samples[-1].step} steps, {len(samples)} samples; second half, {course.steps} steps:")
    print(
        f"  memory        {course.memory / 2**20:.0f} MiB, {course.growth:+.0f} bytes a step, "
        f"noise {course.noise / 2**20:.2f} MiB"
    )
    print(f"  open files    {course.handles[0]:g}, then {course.handles[1]:g}")
    print(f"  logs          {course.bytes_a_step[0]:.0f} bytes a step, then {course.bytes_a_step[1]:.0f}")
    print(f"  files         {course.files[0]}, then {course.files[1]}")
    write_json(OUT, {**asdict(course), "faults": course.faults(), "samples": [sample._asdict() for sample in samples]})
    for fault in course.faults():
        print(f"fault: {fault}")
    return 1 if course.faults() else 0


if __name__ == "__main__":
    sys.exit(main())
