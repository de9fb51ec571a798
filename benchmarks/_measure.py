"""How the benchmarks measure: interleaved times, and the peak of live tensor bytes."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch.profiler import ProfilerActivity, profile


class Median(NamedTuple):
    """Median duration of one call, in milliseconds."""

    wall: float
    cpu: float
    """Processor time of the process: what other programs on the machine disturb least."""


def interleaved_medians(calls: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 2) -> dict[str, Median]:
    """Time calls side by side: one of each per round, every round starting with another one.

    A slow phase of the machine then meets all of them alike.
    """
    names = list(calls)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for round_ in range(warmup + repeats):
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            wall, cpu = time.perf_counter(), time.process_time()
            calls[name]()
            elapsed = (time.perf_counter() - wall, time.process_time() - cpu)
            if round_ >= warmup:
                times[name].append(elapsed)
    return {
        name: Median(*(1e3 * statistics.median(column) for column in zip(*rows, strict=True)))
        for name, rows in times.items()
    }


def peak_bytes(call: Callable[[], object]) -> int:
    """Give the largest number of bytes that tensors made by ``call`` hold at one time, on the CPU.

    Exact and repeatable: torch's CPU allocator reports every allocation and release to the profiler. What lives
    before the call (weights, the batch) is not counted, nor is scratch memory that oneDNN takes by itself.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events: list[dict[str, Any]] = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    records = [event["args"] for event in events if event["name"] == "[memory]"]
    before = records[0]["Total Allocated"] - records[0]["Bytes"]
    return int(max(record["Total Allocated"] for record in records) - before)
