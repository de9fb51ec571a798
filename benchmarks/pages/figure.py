"""Plot the gains of benchmarks/results/compare-*.json into docs/assets/gains.svg.

``python benchmarks/pages/figure.py``, which ``write.py`` calls, draws one line per pair of student and teacher, and one
marker per method: the mean gain over the runs of the same seeds without a teacher. Small dots are DFMSD's own seeds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs" / "assets" / "gains.svg"
PAIRS = [
    ("digits: FCOS from FCOS", "digits-homogeneous", "dfmsd"),
    ("digits: FCOS from Faster R-CNN", "digits-unlike", "dfmsd@T2"),
    ("aquarium: FCOS from FCOS", "aquarium-homogeneous-default", "dfmsd"),
    ("aquarium: RetinaNet from Faster R-CNN", "aquarium-heterogeneous", "dfmsd[alpha=1]"),
    ("hituav: FCOS from FCOS", "hituav-homogeneous-default", "dfmsd"),
    ("hituav: RetinaNet from Faster R-CNN", "hituav-heterogeneous", "dfmsd"),
    ("aquarium: FCOS from Faster R-CNN", "aquarium-unlike", "dfmsd"),
    ("aquarium: SSDLite from Faster R-CNN", "aquarium-ssdlite", "dfmsd[alpha=1]"),
    ("aquarium: RetinaNet from a weak RT-DETR", "aquarium-transformer", "dfmsd[alpha=1]"),
]
"""Label, results/compare-<name>.json, and the row of DFMSD."""
BLUE, GRAY = "#1f6feb", "#8b949e"


def gains(row: dict[str, Any]) -> list[float]:
    """Return the gains of one method in AP points, one per seed."""
    return [100 * gain for gain in row["differences"].values()]


def draw_pair(axes: Any, height: float, name: str, ours: str) -> None:
    """Draw the methods of one pair at one height."""
    path = ROOT / "benchmarks" / "results" / f"compare-{name}.json"
    rows = {row["method"]: row for row in json.loads(path.read_text(encoding="utf-8"))["summary"]}
    others = [method for method in rows if "dfmsd" not in method and method != "none"]
    axes.axhline(height, color="#eaeef2", linewidth=1, zorder=0)
    for method in others:
        axes.plot(sum(gains(rows[method])) / len(gains(rows[method])), height, "|", color=GRAY, markersize=13, mew=2)
    own = gains(rows[ours])
    mean = sum(own) / len(own)
    axes.plot(own, [height] * len(own), "o", color=BLUE, markersize=4, alpha=0.45, mew=0)
    axes.plot(mean, height, "o", color=BLUE, markersize=10, zorder=3)
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    place = (max([mean, *own]), height)
    axes.annotate(f"{mean:+.1f}", place, (9, 0), textcoords="offset points", va="center", color=BLUE, bbox=box)


def draw(out: Path = OUT) -> None:
    """Draw all pairs into an SVG file."""
    plt.rcParams.update({"font.size": 11, "svg.fonttype": "none", "svg.hashsalt": "gains"})
    figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
    for position, (_, name, ours) in enumerate(PAIRS):
        draw_pair(axes, -position, name, ours)
    axes.axvline(0, color="#57606a", linewidth=1)
    axes.set_yticks([-position for position in range(len(PAIRS))], [label for label, _, _ in PAIRS])
    axes.set_xticks(range(-4, 15, 2))
    axes.set_xlim(-5, 17)
    axes.set_xlabel("AP gained over training without a teacher")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    axes.plot([], [], "o", color=BLUE, markersize=10, label="DFMSD (small dots: its seeds)")
    axes.plot([], [], "|", color=GRAY, markersize=13, mew=2, linestyle="", label="the other methods of the table")
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(out, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    draw()
