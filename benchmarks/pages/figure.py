"""Plot the gains of benchmarks/results/compare-*.json into docs/assets/gains.svg.

``python benchmarks/pages/figure.py``, which ``write.py`` calls, draws one line per pair of student and teacher, and one
marker per method: the mean gain over the runs of the same seeds without a teacher. Small dots are DFMSD's own seeds.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from scores import Scores, comparison

from dfmsd.comparison.methods import BASELINE

OUT = Path(__file__).resolve().parents[2] / "docs" / "assets" / "gains.svg"
PAIRS = [
    ("digits: FCOS from FCOS", "digits-homogeneous", "dfmsd"),
    ("digits: FCOS from Faster R-CNN", "digits-unlike", "dfmsd@T2"),
    ("aquarium: FCOS from FCOS", "aquarium-homogeneous-default", "dfmsd"),
    ("aquarium: RetinaNet from Faster R-CNN", "aquarium-heterogeneous", "dfmsd[alpha=1]"),
    ("hituav: FCOS from FCOS", "hituav-homogeneous-default", "dfmsd"),
    ("hituav: RetinaNet from Faster R-CNN", "hituav-heterogeneous", "dfmsd"),
    ("aquarium: FCOS from Faster R-CNN", "aquarium-unlike", "dfmsd"),
    ("hituav: FCOS from Faster R-CNN", "hituav-unlike", "dfmsd"),
    ("aquarium: SSDLite from Faster R-CNN", "aquarium-ssdlite", "dfmsd[alpha=1]"),
    ("aquarium: RetinaNet from a weak RT-DETR", "aquarium-transformer", "dfmsd[alpha=1]"),
]
"""Label, results/compare-<name>.json, and the row of DFMSD."""
BLUE, GRAY = "#1f6feb", "#8b949e"


def draw_pair(axes: Axes, height: float, table: Scores, ours: str) -> None:
    """Draw the methods of one pair at one height."""
    axes.axhline(height, color="#eaeef2", linewidth=1, zorder=0)
    for method in table.runs:
        if "dfmsd" not in method and method != BASELINE:
            gain = mean(table.differences(method).values())
            axes.plot(gain, height, "|", color=GRAY, markersize=13, mew=2)
    own = list(table.differences(ours).values())
    axes.plot(own, [height] * len(own), "o", color=BLUE, markersize=4, alpha=0.45, mew=0)
    axes.plot(mean(own), height, "o", color=BLUE, markersize=10, zorder=3)
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    place = (max(own), height)
    axes.annotate(f"{mean(own):+.1f}", place, (9, 0), textcoords="offset points", va="center", color=BLUE, bbox=box)


def draw(out: Path = OUT) -> None:
    """Draw all pairs into an SVG file."""
    plt.rcParams.update({"font.size": 11, "svg.fonttype": "none", "svg.hashsalt": "gains"})
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    for position, (_, name, ours) in enumerate(PAIRS):
        draw_pair(axes, -position, comparison(f"compare-{name}"), ours)
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
    plt.close(figure)


if __name__ == "__main__":
    draw()
