"""What does each ingredient of the training recipe gain? One switch at a time on top of the default recipe.

    python benchmarks/experiments/ingredients.py benchmarks/tables/bccd.yaml --methods none --seeds 0 1

Repeats the comparison with each switch, and writes the AP of the last and of the averaged weights of all runs, and
their seconds, to ``benchmarks/results/ingredients-<data>.json`` after each. Finished runs are used again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from _runs import RESULTS

from dfmsd.comparison.config import CompareConfig
from dfmsd.comparison.runner import compare
from dfmsd.engine.configfile import read_config
from dfmsd.utils.files import write_json

INGREDIENTS: dict[str, dict[str, Any]] = {
    "light": {},
    "mosaic": {"mosaic": 0.5},
    "scale_jitter": {"scale_jitter": (0.6, 1.4)},
    "photometric": {"photometric": 0.5},
    "mixup": {"mixup": 0.15},
    "zoom_out": {"zoom_out": 0.3},
    "iou_crop": {"iou_crop": 0.3},
    "multi_scale": {"multi_scale": (0.75, 1.25)},
    "strong": {"augment": "strong"},
}
"""Name -> changes of the data's settings."""


def measured(run: Path) -> dict[str, float]:
    """Return the AP of both weights of a finished run."""
    average = json.loads((run / "average_metrics.json").read_text())["AP"]
    delivered = json.loads((run / "metrics.json").read_text())["AP"]
    rows = (run / "epochs.csv").read_text().splitlines()
    last = dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))["AP"]
    return {"last": float(last), "average": average, "delivered": delivered}


def main() -> None:
    """Run what is missing and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--ingredients", nargs="+", choices=list(INGREDIENTS), default=list(INGREDIENTS))
    parser.add_argument("--methods", nargs="+", default=["none"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    config = read_config(CompareConfig, options.config)
    path = RESULTS / f"ingredients-{Path(config.data.root).name}.json"
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(path.read_text()) if path.exists() else {}
    for seed in options.seeds:
        for name in options.ingredients:
            changed = replace(
                config,
                data=replace(config.data, **INGREDIENTS[name]),
                methods=options.methods,
                seeds=[seed],
                deliver="auto",
                teacher_cache=None,
                out=str(Path(config.out).parent / "ingredients" / name / f"seed-{seed}"),
            )
            for results in compare(changed):
                for row in results.rows:
                    found.setdefault(name, {}).setdefault(row.method, {})[str(seed)] = measured(Path(row.run))
            write_json(path, found)


if __name__ == "__main__":
    main()
