"""Train Ultralytics' own model with its own trainer on a data set, and measure it as a student is measured.

    pip install 'dfmsd[ultralytics]'
    python benchmarks/experiments/peer.py ../shared/data/bccd --image-size 192 --epochs 42 --seeds 0 1

Random weights, batch 8, everything else by the library's default: its optimizer, mosaics, weight average and choice of
the best epoch on the validation images. Its boxes of every validation image are measured by dfmsd; ``own_AP`` is by
its own validation. Writes
``benchmarks/results/peer-<data>.json`` after each run; a finished run is not repeated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import yaml
from _runs import RESULTS
from ultralytics import YOLO

from dfmsd import convert
from dfmsd.data.opening import open_split
from dfmsd.evaluation.evaluate import CocoResult, coco_metrics, match_classes
from dfmsd.utils.files import write_json

TRAINED = {"batch": 8, "workers": 0, "device": "cpu", "pretrained": False, "amp": False, "plots": False}


def yolo_copy(root: Path, folder: Path) -> Path:
    """Write the data set as the library reads it, once; return its YAML file."""
    if not folder.exists():
        convert(root, folder, to="yolo")
    declared = yaml.safe_load((folder / "data.yaml").read_text())
    absolute = folder / "absolute.yaml"  # it resolves a relative path against its own settings, not against the file
    absolute.write_text(yaml.safe_dump({**declared, "path": str(folder.resolve())}))
    return absolute


def measure(weights: Path, root: Path, image_size: int) -> dict[str, float | None]:
    """Return COCO's metrics of the model's boxes on the validation images, with the settings of its own validation."""
    model, split = YOLO(weights), open_split(str(root), "val")
    category_of = match_classes(list(model.names.values()), split)
    results = []
    for record in split.records:
        (found,) = model.predict(record.path, imgsz=image_size, conf=0.001, iou=0.7, device="cpu", verbose=False)
        for box, score, label in zip(
            found.boxes.xyxy.tolist(), found.boxes.conf.tolist(), found.boxes.cls.tolist(), strict=True
        ):
            left, top, right, bottom = box
            results.append(
                CocoResult(
                    image_id=record.id,
                    category_id=category_of[int(label)],
                    bbox=[left, top, right - left, bottom - top],
                    score=score,
                )
            )
    return {name: value for name, value in coco_metrics(split, results).items() if name in ("AP", "AP50")}


def main() -> None:
    """Train and measure what is missing, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="yolo11n.yaml")
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, default=Path("runs/peer"))
    arguments = parser.parse_args()
    folder = arguments.out.resolve() / arguments.data.name
    declared = yolo_copy(arguments.data, folder / "data")
    path = RESULTS / f"peer-{arguments.data.name}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    name = f"{Path(arguments.model).stem}, {arguments.image_size} px, {arguments.epochs} epochs"
    for seed in arguments.seeds:
        if str(seed) in results.get(name, {}):
            continue
        model = YOLO(arguments.model)
        run = {"project": str(folder), "name": f"seed-{seed}", "exist_ok": True, "seed": seed}
        own = model.train(data=str(declared), imgsz=arguments.image_size, epochs=arguments.epochs, **TRAINED, **run)
        measured = measure(folder / f"seed-{seed}" / "weights" / "best.pt", arguments.data, arguments.image_size)
        results.setdefault(name, {})[str(seed)] = {**measured, "own_AP": own.box.map, "own_AP50": own.box.map50}
        write_json(path, results)


if __name__ == "__main__":
    main()
