"""Memory of the processes that read a data set of COCO's size: loader workers, forked and spawned, and gloo ranks.

    python benchmarks/coco_sharing.py --root build/coco

Private memory is what a process has for itself: what two processes map or inherit together is in none of them. The
same with a data set of eight images shows how much of it the data set's size costs. On Linux.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from _coco import write_coco
from _measure import parse_arguments, print_rows, write_results
from coco_scale import write
from torch import multiprocessing

from dfmsd.data import CocoDataModule, DataConfig, open_split
from dfmsd.data.split import DetectionSplit

WORKERS = RANKS = 2
SIDE = 64


def private_mib(pid: int | str = "self") -> float:
    """Return the memory that a process shares with no other one, in MiB."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(map(int, re.findall(r"^Private_(?:Clean|Dirty):\s*(\d+)", rollup, re.MULTILINE))) / 1024


def open_worker_data(root: str, method: str, answers: Any) -> None:
    """Load two batches with workers, and answer with the private memory of this process and of each of them."""
    logging.disable()
    config = DataConfig(root, image_size=SIDE, batch_size=4, workers=WORKERS, cache="off")
    loader = CocoDataModule(config).train_dataloader()
    loader.multiprocessing_context = method
    batches = iter(loader)
    next(batches), next(batches)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    measured = [private_mib(child) for child in children if "resource_tracker" not in _command(child)]
    answers.put([private_mib(), *measured])


def open_rank_data(rank: int, root: str, meeting: str, answers: Any) -> None:
    """Open both splits in one of two gloo ranks, and answer with its private memory while both have done so."""
    logging.disable()
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=RANKS)
    splits: list[DetectionSplit] = [open_split(root, split) for split in ("train", "val")]
    _ = [int(split.records.columns.labels.sum()) for split in splits]  # which maps the pages
    dist.barrier()
    answers.put(private_mib())
    dist.barrier()
    dist.destroy_process_group()


def _command(pid: str) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def answer_of(target: Callable[..., None], *arguments: object) -> list[float]:
    """Run a function in a new process, and return what it answers."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=target, args=(*arguments, answers))
    process.start()
    answer: list[float] = answers.get()
    process.join()
    return answer


def ranks(root: str, folder: Path) -> list[float]:
    """Return the private memory of each rank."""
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    torch.multiprocessing.spawn(open_rank_data, (root, str(folder / f"meeting-{Path(root).name}"), answers), RANKS)
    return [answers.get() for _ in range(RANKS)]


def main() -> None:
    """Measure, print a table and write JSON."""
    options = parse_arguments(__doc__, "coco_sharing", 1, root="build/coco")
    large = Path(options.root)
    if not large.exists():
        write(large)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["DFMSD_CACHE"] = str(folder / "cache")
        small = write_coco(folder / "small", train=8, val=8)
        for root in (large, small):
            open_split(root, "train"), open_split(root, "val")  # which writes the indexes
            found = {
                f"{method}ed worker": answer_of(open_worker_data, str(root), method) for method in ("fork", "spawn")
            }
            rows += [
                {"data": root.name, "process": kind, "private_mib": max(measured[1:])}
                for kind, measured in found.items()
            ]
            rows.append({"data": root.name, "process": "rank", "private_mib": max(ranks(str(root), folder))})
    print_rows(f"private memory, {WORKERS} workers, {RANKS} ranks", rows)
    write_results(options.out, {"rows": rows})


if __name__ == "__main__":
    main()
