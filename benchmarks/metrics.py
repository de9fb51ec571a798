"""COCO metrics of as many images and detections as COCO's validation has, by two libraries.

python benchmarks/metrics.py

5,000 images, 36,781 objects of 80 classes, 100 detections an image, drawn at random, of which as many as there are
objects lie near one. Each library reads the same arrays in a process of its own, on Linux; dfmsd uses hotcoco, and its
tests check it with faster-coco-eval. The 12 numbers of both are compared to the last digit.
"""

from __future__ import annotations

import json
import subprocess
import sys
from statistics import median
from typing import Any

import numpy as np
from _measure import parse_arguments, print_rows, write_results

IMAGES, OBJECTS, CLASSES, DETECTIONS = 5_000, 36_781, 80, 100
LIBRARIES = ("hotcoco", "faster_coco_eval")
LISTED = {
    "images": [{"id": number, "width": 640, "height": 640} for number in range(1, IMAGES + 1)],
    "categories": [{"id": number, "name": str(number)} for number in range(1, CLASSES + 1)],
}


def draw() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return images, classes and boxes of the objects, and rows of image, x, y, width, height, score, class."""
    rng = np.random.default_rng(0)
    images = np.sort(rng.integers(1, IMAGES + 1, OBJECTS))
    classes = rng.integers(1, CLASSES + 1, OBJECTS)
    boxes = np.hstack([rng.uniform(0, 500, (OBJECTS, 2)), rng.uniform(5, 200, (OBJECTS, 2))])
    near = boxes + rng.normal(0, 6, boxes.shape)
    others = IMAGES * DETECTIONS - OBJECTS
    apart = np.hstack([rng.uniform(0, 500, (others, 2)), rng.uniform(5, 200, (others, 2))])
    return (
        images,
        classes,
        boxes,
        np.column_stack(
            [
                np.concatenate([images, rng.integers(1, IMAGES + 1, others)]),
                np.vstack([near, apart]).clip(1),
                rng.random(OBJECTS + others),
                np.concatenate([classes, rng.integers(1, CLASSES + 1, others)]),
            ]
        ),
    )


def measure(library: str) -> dict[str, Any]:
    """Return the metrics of this process's library, and its CPU time and peak memory."""
    import resource
    import time

    images, classes, boxes, found = draw()
    start, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if library == "hotcoco":
        from hotcoco import COCO, COCOeval

        truth = COCO.from_arrays(LISTED["images"], LISTED["categories"], images, classes, boxes)
        evaluation = COCOeval(truth, truth.load_res(found), "bbox")
    else:
        from faster_coco_eval import COCO, COCOeval_faster

        columns = zip(images.tolist(), classes.tolist(), boxes.tolist(), strict=True)
        annotations = [
            {"id": number, "image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for number, (image, label, box) in enumerate(columns, 1)
        ]
        results = [
            {"image_id": int(row[0]), "category_id": int(row[6]), "bbox": row[1:5], "score": row[5]}
            for row in found.tolist()
        ]
        truth = COCO({**LISTED, "annotations": annotations})
        evaluation = COCOeval_faster(truth, truth.loadRes(results), iouType="bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    stats = [float(value) for value in evaluation.stats[:12]]
    return {"cpu_seconds": time.process_time() - start, "memory_mib": used / 1024, "stats": stats}


def run(library: str) -> dict[str, Any]:
    """Measure a library in a process of its own."""
    done = subprocess.run([sys.executable, __file__, library], check=True, capture_output=True, text=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    """Measure the libraries in turns, print a table and write JSON."""
    options = parse_arguments(__doc__, "metrics", repeats=3)
    rounds = [{library: run(library) for library in LIBRARIES} for _ in range(options.repeats)]
    rows = [
        {
            "library": library,
            **{key: median(one[library][key] for one in rounds) for key in ("cpu_seconds", "memory_mib")},
        }
        for library in LIBRARIES
    ]
    ours, reference = (rounds[0][library]["stats"] for library in LIBRARIES)
    result = {"ratio_cpu": rows[0]["cpu_seconds"] / rows[1]["cpu_seconds"], "equal": ours == reference}
    print_rows(f"metrics of {IMAGES} images with {DETECTIONS} detections each", rows)
    print_rows("hotcoco / faster-coco-eval", [result])
    write_results(options.out, {**result, "repeats": options.repeats, "stats": ours, "rows": rows})


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in LIBRARIES:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()
