"""Cost of glibc returning memory to the kernel: page faults and time of a training step, with and without.

Each setting runs in its own process, because setting any threshold disables glibc's dynamic adaptation of the others,
which is part of the default. The processes take turns, one step each.

    python benchmarks/allocator.py
"""

from __future__ import annotations

import multiprocessing as mp
import resource
import statistics
import time
from collections import defaultdict
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from _measure import parse_arguments, print_rows, write_results
from step_overhead import BATCH, GENERATIONS, SIDE, STUDENTS, THREADS, build, training_step

from dfmsd.engine.allocator import keep_freed_memory
from dfmsd.errors import DfmsdError

SETTINGS = ("default", "kept")
STEPS = ("student", "distillation")
WARMUP = 3
STAGE = 2


def work(connection: Connection, setting: str) -> None:
    """Run the step named by each message, and answer with its time, page faults and peak memory."""
    torch.set_num_threads(THREADS)
    if setting == "kept" and not keep_freed_memory():
        connection.send("cannot set glibc's thresholds: another C library, a GPU, or MALLOC_ variables")
        return
    setup = build(STUDENTS[0], STAGE, GENERATIONS[0])
    steps = {
        "student": partial(training_step, setup.plain, setup),
        "distillation": partial(training_step, setup.distilled, setup),
    }
    connection.send(None)
    while name := connection.recv():
        faults, wall, cpu = _faults(), time.perf_counter(), time.process_time()
        steps[name]()
        times = {"wall_ms": 1e3 * (time.perf_counter() - wall), "cpu_ms": 1e3 * (time.process_time() - cpu)}
        connection.send({**times, "faults": _faults() - faults, "peak_mb": _usage().ru_maxrss / 1024})


def _usage() -> resource.struct_rusage:
    return resource.getrusage(resource.RUSAGE_SELF)


def _faults() -> int:
    return _usage().ru_minflt


def measure(repeats: int) -> list[dict[str, Any]]:
    """Return the medians of each step with each setting."""
    workers: dict[str, Connection] = {}
    for setting in SETTINGS:
        workers[setting], remote = mp.get_context("spawn").Pipe()
        mp.get_context("spawn").Process(target=work, args=(remote, setting), daemon=True).start()
    for connection in workers.values():
        if refusal := connection.recv():
            raise DfmsdError(refusal)
    samples: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for round_ in range(WARMUP + repeats):
        for step in STEPS:
            for setting in SETTINGS if round_ % 2 else reversed(SETTINGS):
                workers[setting].send(step)
                sample = workers[setting].recv()
                if round_ >= WARMUP:
                    samples[step, setting].append(sample)
    for connection in workers.values():
        connection.send(None)
    return [
        {"step": step, "setting": setting, **{k: statistics.median(row[k] for row in rows) for k in rows[0]}}
        for (step, setting), rows in samples.items()
    ]


def main() -> None:
    """Measure every row, print a table and write JSON."""
    options = parse_arguments(__doc__, "allocator", repeats=25)
    torch.set_num_threads(THREADS)
    rows = sorted(measure(options.repeats), key=lambda row: (row["step"], row["setting"]))
    print_rows(f"one step, batch {BATCH}, {SIDE} px, {THREADS} thread", rows)
    by = {(row["step"], row["setting"]): row for row in rows}
    speedups = {
        f"{step}_{clock}_speedup": by[step, "default"][f"{clock}_ms"] / by[step, "kept"][f"{clock}_ms"]
        for step in STEPS
        for clock in ("wall", "cpu")
    }
    write_results(options.out, {**speedups, "repeats": options.repeats, "rows": rows})


if __name__ == "__main__":
    main()
