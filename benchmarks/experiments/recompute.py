"""Recompute numbers of the results page, picked by chance, from the weights of the runs behind them.

    python benchmarks/experiments/recompute.py --runs . --count 10

Of the comparisons in ``benchmarks/results``, it takes runs whose folders are still there, detects in the validation
images with the delivered weights, one image after the other, and lets another library than the one that training uses
compute the AP. Nothing of the page's own code is used, nor of the evaluation that wrote the JSON files.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from faster_coco_eval import COCO, COCOeval_faster
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import dfmsd

BENCHMARKS = Path(__file__).resolve().parents[1]
PAGE = BENCHMARKS.parent / "docs" / "results.md"
TOLERANCE = 5e-4
"""Of an AP in 0..1, for detections of equal scores in another order."""


class Claim(NamedTuple):
    """An AP of a JSON file."""

    file: str
    method: str
    seed: int
    ap: float
    run: Path


def claims(runs: Path) -> Iterator[Claim]:
    """Yield the runs of all comparisons whose folders are there, if they were measured on the val split."""
    for file in sorted((BENCHMARKS / "results").glob("*.json")):
        content = json.loads(file.read_text())
        for row in content.get("rows", []) if isinstance(content, dict) else []:
            if "run" in row and measured_on_val(runs / row["run"]):
                yield Claim(file.name, row["method"], row["seed"], row["AP"], runs / row["run"])


def measured_on_val(run: Path) -> bool:
    """Return whether the folder has a student whose AP is that of the val split, not that of held-out images."""
    config = run / "config.yaml"
    return (run / "student.safetensors").is_file() and not yaml.safe_load(config.read_text())["data"]["holdout"]


def recompute(run: Path, root: Path) -> float:
    """Return the AP of a run's student on the val images of a COCO folder, 0..1."""
    truth = json.loads((root / "annotations" / "instances_val.json").read_text())
    detector = dfmsd.load_detector(run)
    size = yaml.safe_load((run / "config.yaml").read_text())["data"]["image_size"]
    ids = {category["name"]: category["id"] for category in truth["categories"]}
    found: list[dict[str, Any]] = []
    for image in truth["images"]:
        prediction = detector.predict(root / "val" / image["file_name"], score=0.0, image_size=size)
        boxes, scores = prediction.boxes.tolist(), prediction.scores.tolist()
        for (x1, y1, x2, y2), score, name in zip(boxes, scores, prediction.class_names, strict=True):
            bbox = [x1, y1, x2 - x1, y2 - y1]
            found.append({"image_id": image["id"], "category_id": ids[name], "bbox": bbox, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(truth)
        evaluation = COCOeval_faster(coco, coco.loadRes(found), "bbox")
        evaluation.run()
    return float(evaluation.stats[0])


def main() -> None:
    """Recompute, print a table, and end with status 1 if a number differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path(), help="folder that the runs' paths are relative to")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", type=int, default=None, help="of the choice; another one each time by default")
    options = parser.parse_args()
    known = list(claims(options.runs))
    if not known:
        sys.exit(f"{options.runs.absolute()}: none of the runs in benchmarks/results is there; make tables trains them")
    page = set(re.findall(r"\d+\.\d", PAGE.read_text(encoding="utf-8")))
    table = Table("file", "method", "seed", "JSON", "recomputed", "on the page")
    wrong = 0
    for claim in random.Random(options.seed).sample(known, min(options.count, len(known))):
        root = Path(yaml.safe_load((claim.run / "config.yaml").read_text())["data"]["root"])
        ap = recompute(claim.run, root if root.is_absolute() else options.runs / root)
        wrong += abs(ap - claim.ap) > TOLERANCE
        shown = f"{100 * claim.ap:.1f}"
        values = (f"{100 * claim.ap:.2f}", f"{100 * ap:.2f}", "yes" if shown in page else "in a mean")
        table.add_row(claim.file, escape(claim.method), str(claim.seed), *values)
    Console().print(table)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
