"""In which settings does distillation work? A few methods in several settings, on a held-out part of train.

    python benchmarks/experiments/pilot.py configs/aquarium/compare-methods.yaml --settings 1000_steps 3000_steps
    python benchmarks/experiments/pilot.py configs/bccd/compare-methods.yaml --methods 'pkd,dfmsd[beta=4]' --seeds 0,1,2

The config of the comparison is changed as in SETTINGS, and a fifth of the training images replaces the validation
images, which are not used. (The teachers were trained on that fifth too, so their own AP is too high here.) Finished
runs are reused. Writes ``benchmarks/results/pilot-<data>.json`` and keeps its other settings.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dfmsd.comparison.config import CompareConfig
from dfmsd.comparison.methods import split_methods
from dfmsd.comparison.runner import compare
from dfmsd.data.datamodule import CocoDataModule
from dfmsd.engine.configfile import read_config
from dfmsd.utils.files import write_json

RESULTS = Path(__file__).resolve().parents[1] / "results"
HOLDOUT = 0.2
TINY = {"student": {"backbone": "mobilenetv3_small_050", "pretrained": False, "frozen_stride": 0}}
WHOLE = {"student": {"frozen_stride": 0}}
SETTINGS: dict[str, dict[str, Any]] = {
    "1500_steps_tiny": {"steps": 1500, **TINY},
    "5000_steps_tiny": {"steps": 5000, **TINY},
    "1000_steps_pretrained": {"steps": 1000, **WHOLE},
    "500_steps_pretrained": {"steps": 500, **WHOLE},
    "500_steps": {"steps": 500},
    "500_steps_balance_4": {"steps": 500, "balance": 4.0},
    "500_steps_balance_40": {"steps": 500, "balance": 40.0},
    "1000_steps": {"steps": 1000},
    "3000_steps": {"steps": 3000},
    "10000_steps": {"steps": 10000},
    "1000_steps_lr_3e-4": {"steps": 1000, "optim": {"lr": 3e-4}},
    "1000_steps_balance_0.5": {"steps": 1000, "balance": 0.5},
    "1000_steps_balance_1": {"steps": 1000, "balance": 1.0},
    "1000_steps_balance_2": {"steps": 1000, "balance": 2.0},
    "1000_steps_inherit": {"steps": 1000, "inherit": 1},
}
"""Name -> changes of the config; ``steps`` are rounded to whole epochs."""


def changed(config: CompareConfig, setting: str, out: Path) -> CompareConfig:
    """Return the config of a setting."""
    values = dict(SETTINGS[setting])
    steps = values.pop("steps")
    for name in ("student", "data", "optim"):
        values[name] = replace(getattr(config, name), **values.get(name, {}))
    values["data"].holdout = HOLDOUT
    images = len(CocoDataModule(values["data"]).train)
    epochs = round(steps / (images // config.data.batch_size))
    return replace(config, **values, epochs=epochs, eval_every=max(1, epochs // 6), out=str(out / setting))


def main() -> None:
    """Run missing experiments and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="config of a comparison")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=["1000_steps"])
    parser.add_argument("--pairs", nargs="+", help="pairs of the config; all by default")
    parser.add_argument("--methods", type=split_methods, default=["pkd", "mgd", "dfmsd"])
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0])
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    config = replace(read_config(CompareConfig, options.config), methods=options.methods, seeds=options.seeds)
    if options.pairs:
        config = replace(config, pairs={name: config.pairs[name] for name in options.pairs})
    data = options.config.resolve().parent.name
    path = RESULTS / f"pilot-{data}.json"
    for setting in options.settings:
        setting_config = changed(config, setting, Path("runs", data, "pilot"))
        pairs = {results.pair: results.as_json() for results in compare(setting_config, jobs=options.jobs)}
        known = json.loads(path.read_text()) if path.exists() else {}
        before = known.get(setting, {}).get("pairs", {})
        described = {"student": asdict(setting_config.student), "epochs": setting_config.epochs}
        described["changes"] = SETTINGS[setting]
        write_json(path, {**known, setting: {**described, "pairs": {**before, **pairs}}})


if __name__ == "__main__":
    main()
