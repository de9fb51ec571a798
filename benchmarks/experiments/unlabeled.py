"""Do unlabeled images help? A quarter of a data set's labels, with and without the other images.

    python benchmarks/experiments/unlabeled.py --jobs 2       # benchmarks/results/unlabeled-digits.json
    python benchmarks/experiments/unlabeled.py --rows pseudo  # some of alone, more, first and pseudo; the others stay

Every fourth training image keeps its annotations. The others are left out, feed the distillation terms, teach backbone
and neck in a stage without labels first, or have pseudo-labels of the teacher as well, with which the baseline trains,
too. The teacher was trained on the whole training set, including the labels withheld from the student. Finished runs
are reused.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from _runs import RESULTS

from dfmsd.comparison.config import CompareConfig
from dfmsd.comparison.runner import compare
from dfmsd.data.digits import cached_digits
from dfmsd.data.pseudo import PseudoConfig
from dfmsd.engine.configfile import read_config
from dfmsd.utils.files import write_json

CONFIG = Path("benchmarks/tables/digits-quarter.yaml")
ROWS = ["alone", "more", "first", "pseudo"]
WITHOUT_LABELS = "@T1[labels=false]:1+T1:3"


def split(source: Path, root: Path, rest: Path) -> None:
    """Copy every fourth image with its annotations, and the others without."""
    whole = json.loads((source / "annotations/instances_train.json").read_text())
    kept = whole["images"][::4]
    ids = {image["id"] for image in kept}
    annotations = [box for box in whole["annotations"] if box["image_id"] in ids]
    for folder in (root / "annotations", root / "train", rest):
        folder.mkdir(parents=True, exist_ok=True)
    for image in whole["images"]:
        target = root / "train" if image["id"] in ids else rest
        shutil.copy(source / "train" / image["file_name"], target)
    shutil.copytree(source / "val", root / "val", dirs_exist_ok=True)
    shutil.copy(source / "annotations/instances_val.json", root / "annotations")
    write_json(root / "annotations/instances_train.json", {**whole, "images": kept, "annotations": annotations})


def comparisons(config: CompareConfig, rest: Path) -> dict[str, tuple[str, CompareConfig]]:
    """Return the rows: key -> name in the JSON file, and comparison."""
    (teachers,) = config.pairs.values()
    more = replace(config.data, unlabeled=str(rest))
    pseudo = replace(more, pseudo=PseudoConfig("auto"))
    first = [f"{method}{WITHOUT_LABELS}" for method in config.methods if method != "none"]
    return {
        "alone": ("labels alone", config),
        "more": ("with the other images", replace(config, data=more, pairs={"unlabeled": teachers})),
        "first": (
            "with the other images, without labels first",
            replace(config, data=more, pairs={"first": teachers}, methods=first),
        ),
        "pseudo": (
            "with pseudo-labels of the other images",
            replace(config, data=pseudo, pairs={"pseudo": teachers}, out=f"{config.out}-pseudo"),
        ),
    }


def main() -> None:
    """Prepare the data, run missing experiments and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--source", default="digits", help="COCO folder, or digits (default: %(default)s)")
    parser.add_argument("--config", type=Path, default=CONFIG)
    options = parser.parse_args()
    config = read_config(CompareConfig, options.config)
    root = Path(config.data.root)
    rest = root.with_name(f"{root.name}_rest")
    if not rest.exists():
        split(cached_digits() if options.source == "digits" else Path(options.source), root, rest)
    file = RESULTS / f"unlabeled-{root.parent.name}.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for key, (name, one) in comparisons(config, rest).items():
        if key in options.rows:
            results[name] = [pair.as_json() for pair in compare(one, jobs=options.jobs)]
            write_json(file, results)


if __name__ == "__main__":
    main()
