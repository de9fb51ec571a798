"""Opening a data set of COCO's size: CPU time and peak memory of the first and of later processes.

python benchmarks/coco_scale.py --root build/coco

Writes 118,287 + 5,000 images as hard links of a few JPEGs, and 860,001 + 36,781 annotations with polygons, as many as
COCO 2017 has, unless they are there. Every measurement is a process of its own, on Linux.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from _coco import random_photo
from _measure import parse_arguments, print_rows, write_results

SPLITS = {"train": (118_287, 860_001), "val": (5_000, 36_781)}
"""Images and annotations of COCO 2017."""
CLASSES = 80
PHOTOS = 8
CORNERS = 30
"""Of each polygon; the file is then about as large as COCO's."""
CROWDS = 0.012
"""Share of annotations."""
OPEN = """
import json, logging, re, sys, time
from pathlib import Path
logging.disable()
import dfmsd.data
from dfmsd.data.opening import open_split

def peak_mib():  # not getrusage's, which begins with the parent's
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

imported = peak_mib()
wall, cpu = time.perf_counter(), time.process_time()
split = open_split(sys.argv[1], sys.argv[2])
peak = peak_mib()
print(json.dumps({
    "seconds": time.perf_counter() - wall,
    "cpu_seconds": time.process_time() - cpu,
    "peak_mib": peak,
    "imports_mib": imported,
    "images": len(split),
    "boxes": sum(len(record.boxes) for record in split.records),
}))
"""


def write(root: Path) -> None:
    """Write the data set, in one step."""
    unfinished = root.with_name(f"{root.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "annotations").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, (images, count) in SPLITS.items():
        (unfinished / split).mkdir()
        photos = [unfinished / split / f"{number:012}.jpg" for number in range(PHOTOS)]
        sizes = []
        for photo in photos:
            image = random_photo(rng).resize(tuple(rng.integers(400, 641, size=2).tolist()))
            image.save(photo, quality=90)
            sizes.append(image.size)
        for number in range(PHOTOS, images):
            os.link(photos[number % PHOTOS], unfinished / split / f"{number:012}.jpg")
        entries = [
            {
                "license": 3,
                "file_name": f"{number:012}.jpg",
                "height": sizes[number % PHOTOS][1],
                "width": sizes[number % PHOTOS][0],
                "date_captured": "2013-11-14 17:02:52",
                "id": number,
            }
            for number in range(images)
        ]
        with (unfinished / "annotations" / f"instances_{split}.json").open("w") as file:
            file.write(f'{{"info": {{}}, "images": {json.dumps(entries)}, "annotations": [')
            for number, entry in enumerate(islice(objects(rng, images, sizes), count)):
                file.write(f"{', ' if number else ''}{json.dumps({**entry, 'id': number + 1})}")
            categories = [{"supercategory": "thing", "id": label + 1, "name": f"class {label}"} for label in range(80)]
            file.write(f'], "categories": {json.dumps(categories)}}}')
    unfinished.rename(root)


def objects(rng: np.random.Generator, images: int, sizes: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """Draw annotations without end."""
    while True:
        image = int(rng.integers(images))
        width, height = sizes[image % PHOTOS]
        low, high = np.sort(rng.uniform(0, 1, size=(2, 2)), axis=0) * (width, height)
        points = np.round(low + (high - low) * rng.uniform(0, 1, size=(CORNERS, 2)), 2)
        corner, side = points.min(axis=0), np.ptp(points, axis=0)
        yield {
            "segmentation": [points.ravel().tolist()],
            "area": round(float(side.prod()) * 0.6, 4),
            "iscrowd": int(rng.uniform() < CROWDS),
            "image_id": image,
            "bbox": [round(value, 2) for value in [*corner.tolist(), *side.tolist()]],
            "category_id": int(rng.integers(CLASSES)) + 1,
        }


def measure(root: Path, split: str, cache: Path) -> dict[str, Any]:
    """Open a split in a new process."""
    environment = {**os.environ, "DFMSD_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", OPEN, str(root), split]
    shown = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    measured: dict[str, Any] = json.loads(shown)
    return measured


def main() -> None:
    """Measure, print a table and write JSON."""
    arguments = parse_arguments(__doc__, "coco_scale", 3, root="build/coco")
    root = Path(arguments.root)
    if not root.exists():
        write(root)
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for split in SPLITS:
            rows.append({"split": split, "opening": "first", **measure(root, split, Path(cache))})
            for _ in range(arguments.repeats):
                rows.append({"split": split, "opening": "later", **measure(root, split, Path(cache))})
    print_rows("Opening a data set of COCO's size", rows)
    write_results(arguments.out, {"openings": rows})


if __name__ == "__main__":
    main()
