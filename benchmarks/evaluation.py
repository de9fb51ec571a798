"""Cost of an evaluation compared with its parts, bare detection and bare COCOeval.

python benchmarks/evaluation.py
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from _coco import CLASSES, write_coco
from _measure import Median, interleaved_medians, parse_arguments, print_rows, write_results
from hotcoco import COCO, COCOeval
from torchvision.models.detection.image_list import ImageList

from dfmsd import DetectorConfig, build_detector
from dfmsd.data import CocoDataModule, DataConfig
from dfmsd.detectors.torchvision.wrap import OneStageDetector
from dfmsd.evaluation.evaluate import coco_metrics, coco_results, detect, evaluate, match_classes

STUDENT = DetectorConfig("fcos", "mobilenetv3_small_050", fpn_channels=64, head_convs=2)
IMAGES, BATCH, SIDE = 64, 8, 192
THREADS = 1


def prepare_calls(root: Path) -> dict[str, Callable[[], object]]:
    """Return the evaluation, its parts and the bare references as calls on the same images and detections.

    The student is untrained, which results in the maximum number of detections, the most expensive case.
    """
    torch.manual_seed(0)
    student = build_detector(STUDENT, CLASSES).to(memory_format=torch.channels_last).eval()
    assert isinstance(student, OneStageDetector)
    loader = CocoDataModule(DataConfig(str(root), image_size=SIDE, batch_size=BATCH)).val_dataloader()
    coco = loader.dataset.coco
    category_of = match_classes(CLASSES, coco)
    batches = list(loader)
    detections = [detect(student, batch) for batch in batches]
    pairs = list(zip(detections, batches, strict=True))
    results = [result for found, batch in pairs for result in coco_results(found, batch, category_of)]

    @torch.no_grad()
    def network() -> None:
        for batch in batches:
            student._heads(ImageList(batch.images, batch.sizes), student._maps(batch.images))

    def bare_detection() -> None:
        for batch in batches:
            student.detect(batch.images, batch.sizes)

    def bare_cocoeval(truth: COCO, found: COCO) -> None:
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()

    truth = COCO(copy.deepcopy(coco.ground_truth))
    loaded = truth.load_res(copy.deepcopy(results))
    return {
        "evaluate": lambda: evaluate(student, loader),
        "load images": lambda: list(loader),
        "network to head outputs": network,
        "detect": bare_detection,
        "coco_results": lambda: [coco_results(found, batch, category_of) for found, batch in pairs],
        "coco_metrics": lambda: coco_metrics(coco, results),
        "COCOeval": lambda: bare_cocoeval(truth, loaded),
    }


def summarize(medians: dict[str, Median]) -> dict[str, Any]:
    """Compare the evaluation with detection alone plus COCOeval alone."""
    wall, cpu = ({name: getattr(median, clock) for name, median in medians.items()} for clock in Median._fields)
    return {
        "ratio_to_floor": wall["evaluate"] / (wall["detect"] + wall["COCOeval"]),
        "ratio_to_floor_cpu": cpu["evaluate"] / (cpu["detect"] + cpu["COCOeval"]),
        "images_per_s": 1e3 * IMAGES / wall["evaluate"],
        "post_processing_ms": wall["detect"] - wall["network to head outputs"],
    }


def main() -> None:
    """Measure, print a table and write JSON."""
    options = parse_arguments(__doc__, "evaluation", repeats=21)
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        calls = prepare_calls(write_coco(Path(folder) / "data", train=1, val=IMAGES))
        medians = interleaved_medians(calls, options.repeats)
    result = summarize(medians)
    rows = [
        {"part": name, "ms": m.wall, "cpu_ms": m.cpu, "ms_per_image": m.wall / IMAGES} for name, m in medians.items()
    ]
    print_rows(f"evaluation of {IMAGES} images, batch {BATCH}, {SIDE} px, {THREADS} thread", rows)
    print_rows("evaluation / (detection + COCOeval)", [result])
    configuration = {"student": asdict(STUDENT), "images": IMAGES, "batch": BATCH, "image_size": SIDE}
    write_results(options.out, {**result, "repeats": options.repeats, "configuration": configuration, "rows": rows})


if __name__ == "__main__":
    main()
