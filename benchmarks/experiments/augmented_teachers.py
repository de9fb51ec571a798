"""How well do teachers see images that are augmented as in training? AP on val by augmentation.

    python benchmarks/experiments/augmented_teachers.py ../shared/data/bccd TEACHER ... --image-size 192

Writes the AP of each teacher, with other random numbers for each seed, to
``benchmarks/results/augmented-teachers-<data>.json``, beside those that are there. ``dfmsd check`` prints it for the
augmentation of a run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from _runs import RESULTS

from dfmsd.data import CocoDataModule, DataConfig
from dfmsd.data.config import PRESETS
from dfmsd.detectors import Detector, load_detector
from dfmsd.evaluation.augmented import augmented_ap
from dfmsd.utils.files import write_json

AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "none": {"augment": "none"},
    **{name: {"augment": "light", name: value} for name, value in PRESETS["strong"].items() if name != "flip"},
    "strong": {"augment": "strong"},
}
"""Name -> the data's settings: each part of ``strong`` by itself, and all together."""


def measure(detector: Detector, config: DataConfig, seeds: list[int]) -> list[float | None]:
    """Return the AP by seed."""
    found = []
    for seed in seeds:
        data = CocoDataModule(config, seed)
        found.append(augmented_ap(detector, data.augmented_val_dataloader(), data.class_names))
    return found


def main() -> None:
    """Measure every teacher and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("teachers", nargs="+")
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    path = RESULTS / f"augmented-teachers-{Path(options.data).name}.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    for reference in options.teachers:
        teacher = load_detector(reference)
        content[Path(reference).name] = {
            name: measure(teacher, DataConfig(options.data, image_size=options.image_size, **changes), options.seeds)
            for name, changes in AUGMENTATIONS.items()
        }
        print(Path(reference).name, content[Path(reference).name])
        write_json(path, content)


if __name__ == "__main__":
    main()
